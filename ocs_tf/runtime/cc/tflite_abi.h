// The part of TFLite's binary interface that a delegate meets, restated under our own names.
//
// The runtime hands these structs to every external delegate. Their layout has been the same in all
// releases of TensorFlow Lite and LiteRT that ocs_tf was tested with (docs/delegate.md), and the
// assertions below hold it fixed. Names are TFLite's without its prefix, in our style, where a
// "delegate kernel" is what runs a partition of the graph. Members that are not used here are only
// there for their size.

#ifndef OCS_TF_RUNTIME_TFLITE_ABI_H_
#define OCS_TF_RUNTIME_TFLITE_ABI_H_

#include <cstddef>
#include <cstdint>

static_assert(sizeof(void*) == 8, "the delegate is for 64-bit processors only");

namespace ocs::tflite {

enum Status : int32_t { kOk = 0, kError = 1, kDelegateError = 2 };

enum Type : int32_t { kFloat32 = 1, kInt32 = 2, kUInt8 = 3, kInt8 = 9 };

enum Allocation : int32_t {
  kNone = 0,
  kMmapRo = 1,             // a constant: of the file, or of a delegate
  kArenaRw = 2,            // computed; the runtime gives it memory
  kArenaRwPersistent = 3,  // a variable
  kDynamic = 4,            // resized while the graph runs
  kPersistentRo = 5,       // computed once
  kCustom = 6,             // computed, in memory of the application
};

constexpr int32_t kBuiltinCustom = 32;       // builtin_code of custom operators
constexpr int32_t kBuiltinDelegate = 51;     // likewise, of partitions that delegates run
constexpr int64_t kAllowDynamicTensors = 1;  // a flag of Delegate
constexpr int32_t kOptionalTensor = -1;      // an input that is left out

// Made by malloc. Those given to the runtime are freed by it.
struct IntArray {
  int32_t size;
  int32_t data[1];  // [size]
};

struct Tensor {
  int32_t type;  // Type, or one that is not named here
  void* data;
  IntArray* dims;
  float legacy_scale;
  int32_t legacy_zero_point;
  int32_t allocation_type;  // Allocation
  size_t bytes;
  const void* allocation;
  const char* name;
  struct Delegate* delegate;
  int32_t buffer_handle;
  bool data_is_stale;
  bool is_variable;
  int32_t quantization_type;
  void* quantization_params;
  void* sparsity;
  const IntArray* dims_signature;
};

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int32_t custom_initial_data_size;
  struct Delegate* delegate;
  bool might_have_side_effect;
};

// The runtime copies as much of it as it knows of: members of later releases read as zero.
struct Registration {
  void* (*init)(struct Context*, const char* buffer, size_t length);
  void (*free)(struct Context*, void* user_data);
  Status (*prepare)(struct Context*, Node*);
  Status (*invoke)(struct Context*, Node*);
  const char* (*profiling_string)(const struct Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int32_t version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
  uint64_t reserved[16];
};

// A partition of the graph, as `init` of what the delegate runs it with gets it in `buffer`.
struct DelegateParams {
  struct Delegate* delegate;
  IntArray* nodes_to_replace;
  IntArray* input_tensors;
  IntArray* output_tensors;
};

struct Delegate {
  void* data;
  Status (*prepare)(struct Context*, Delegate*);
  void* copy_from_buffer_handle;
  void* copy_to_buffer_handle;
  void* free_buffer_handle;
  int64_t flags;
  void* opaque_delegate_builder;
};

struct Context {
  size_t tensors_size;
  Status (*get_execution_plan)(Context*, IntArray** plan);
  Tensor* tensors;  // may move whenever the runtime is called
  void* impl;
  Status (*resize_tensor)(Context*, Tensor*, IntArray* dims);  // takes `dims`
  void (*report_error)(Context*, const char* format, ...);
  void* add_tensors;
  Status (*get_node_and_registration)(Context*, int node_index, Node**, Registration**);
  Status (*replace_node_subsets_with_delegate_kernels)(Context*, Registration,
                                                       const IntArray* nodes, Delegate*);
  int32_t recommended_num_threads;
  void* get_external_context;
  void* set_external_context;
  bool allow_fp32_relax_to_fp16;
  void* profiler;
  // The runtime leaves most of what follows nullptr.
  void* allocate_persistent_buffer;
  void* allocate_buffer_for_eval;
  void* request_scratch_buffer_in_arena;
  void* get_scratch_buffer;
  void* resize_tensor_explicit;
  void* preview_delegate_partitioning;
  void* get_tensor;
  void* get_eval_tensor;
  void* get_model_metadata;
  void* acquire_subgraph_context;
  void* release_subgraph_context;
};

static_assert(offsetof(IntArray, data) == 4);

static_assert(offsetof(Tensor, type) == 0);
static_assert(offsetof(Tensor, data) == 8);
static_assert(offsetof(Tensor, dims) == 16);
static_assert(offsetof(Tensor, allocation_type) == 32);
static_assert(offsetof(Tensor, bytes) == 40);
static_assert(offsetof(Tensor, delegate) == 64);
static_assert(offsetof(Tensor, is_variable) == 77);
static_assert(offsetof(Tensor, quantization_params) == 88);
static_assert(offsetof(Tensor, dims_signature) == 104);
static_assert(sizeof(Tensor) == 112);

static_assert(offsetof(Node, inputs) == 0);
static_assert(offsetof(Node, outputs) == 8);
static_assert(offsetof(Node, user_data) == 32);
static_assert(offsetof(Node, delegate) == 64);
static_assert(sizeof(Node) == 80);

static_assert(offsetof(Registration, prepare) == 16);
static_assert(offsetof(Registration, builtin_code) == 40);
static_assert(offsetof(Registration, custom_name) == 48);
static_assert(offsetof(Registration, version) == 56);
static_assert(offsetof(Registration, inplace_operator) == 80);
static_assert(offsetof(Registration, reserved) == 88);

static_assert(offsetof(DelegateParams, output_tensors) == 24);
static_assert(sizeof(DelegateParams) == 32);

static_assert(offsetof(Delegate, prepare) == 8);
static_assert(offsetof(Delegate, flags) == 40);
static_assert(sizeof(Delegate) == 56);

static_assert(offsetof(Context, tensors) == 16);
static_assert(offsetof(Context, resize_tensor) == 32);
static_assert(offsetof(Context, report_error) == 40);
static_assert(offsetof(Context, get_node_and_registration) == 56);
static_assert(offsetof(Context, replace_node_subsets_with_delegate_kernels) == 64);
static_assert(offsetof(Context, profiler) == 104);
static_assert(sizeof(Context) == 200);

}  // namespace ocs::tflite

#endif  // OCS_TF_RUNTIME_TFLITE_ABI_H_
