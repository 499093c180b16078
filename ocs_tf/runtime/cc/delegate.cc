// The external delegate: brings the operators of the packed format to a TFLite runtime.
//
// OcsDequantize is computed once, when the delegate is applied: its output becomes a constant that
// looks like one of the file, so that whatever is applied later (XNNPACK) can take it as weights.
// The other operators run at inference. See docs/delegate.md.

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "exports.h"
#include "parse.h"
#include "run.h"
#include "tflite_abi.h"

namespace ocs {
namespace {

using tflite::Context;
using tflite::Delegate;
using tflite::DelegateParams;
using tflite::IntArray;
using tflite::Node;
using tflite::Registration;
using tflite::Status;
using tflite::Tensor;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using IntArrayPtr = std::unique_ptr<IntArray, Free>;

IntArrayPtr MakeIntArray(const int32_t* data, size_t size) {
  void* memory = std::malloc(sizeof(IntArray) + size * sizeof(int32_t));
  if (memory == nullptr) throw std::bad_alloc();
  IntArrayPtr array(static_cast<IntArray*>(memory));
  array->size = static_cast<int32_t>(size);
  std::copy_n(data, size, array->data);
  return array;
}

bool Resize(Context* context, int tensor, IntArrayPtr dims, size_t bytes, Error* error) {
  const auto status =
      context->resize_tensor(context, &context->tensors[tensor], dims.release());
  if (status != tflite::kOk || context->tensors[tensor].bytes != bytes) {
    return error->Set("the runtime did not resize its output to %zu bytes", bytes);
  }
  return true;
}

// An output of OcsDequantize, for as long as it is a constant.
class FoldedTensor {
 public:
  FoldedTensor() = default;
  FoldedTensor(const FoldedTensor&) = delete;
  FoldedTensor& operator=(const FoldedTensor&) = delete;

  ~FoldedTensor() {
    if (memory_ == nullptr) return;
    Tensor& tensor = context_->tensors[index_];
    if (tensor.data == memory_.get()) {
      tensor.data = nullptr;
      tensor.allocation_type = tflite::kArenaRw;
    }
  }

  bool Fold(Context* context, const DequantizeOp& op, Error* error) {
    if (context->tensors[op.output].allocation_type != tflite::kArenaRw) {
      return error->Set("its output has memory of its own, and cannot become a constant");
    }
    const size_t bytes = op.elements * sizeof(float);
    std::unique_ptr<void, Delete> memory(
        bytes > SIZE_MAX - kBehind
            ? nullptr
            : ::operator new(bytes + kBehind, std::align_val_t(kAlignment), std::nothrow));
    if (memory == nullptr) return error->Set("there is no memory for its %zu bytes", bytes);
    Run(op, static_cast<float*>(memory.get()));
    IntArrayPtr dims = MakeIntArray(op.shape.data(), op.shape.size());
    if (!Resize(context, op.output, std::move(dims), bytes, error)) return false;
    Tensor& tensor = context->tensors[op.output];
    tensor.data = memory.get();
    tensor.allocation_type = tflite::kMmapRo;
    context_ = context;
    index_ = op.output;
    memory_ = std::move(memory);
    return true;
  }

 private:
  static constexpr size_t kAlignment = 64;
  // XNNPACK may read as far behind an operand, on any processor (XNN_EXTRA_BYTES).
  static constexpr size_t kBehind = 128;

  struct Delete {
    void operator()(void* memory) const {
      ::operator delete(memory, std::align_val_t(kAlignment));
    }
  };

  Context* context_ = nullptr;
  int index_ = 0;
  std::unique_ptr<void, Delete> memory_;
};

// Says what is wrong with an operator of the graph.
bool Fail(Context* context, const char* name, int node_index, const Error& error) {
  context->report_error(context, "%s (operator %d): %s.", name, node_index, error.text);
  return false;
}

bool GetNode(Context* context, int node_index, NodeView* view) {
  Node* node = nullptr;
  Registration* registration = nullptr;
  if (context->get_node_and_registration(context, node_index, &node, &registration) !=
      tflite::kOk) {
    return false;
  }
  const char* name = registration->custom_name;  // lives as long as the graph
  const bool ours = registration->builtin_code == tflite::kBuiltinCustom && name != nullptr &&
                    IsOperator(name);
  *view = {ours ? name : nullptr, node->inputs, node->outputs, context->tensors,
           context->tensors_size};
  return true;
}

// The operators of one partition of the graph.
class Partition {
 public:
  bool Init(Context* context, const DelegateParams& params) {
    const IntArray& nodes = *params.nodes_to_replace;
    for (int i = 0; i < nodes.size; ++i) {
      if (!Add(context, nodes.data[i])) return false;
    }
    // What is made and read within the partition gets no memory from the runtime.
    const IntArray& outputs = *params.output_tensors;
    const int32_t* end = outputs.data + outputs.size;
    for (const Step& step : steps_) {
      const int output = step.op.output;
      if (std::find(outputs.data, end, output) == end) internal_[output];
    }
    initialized_ = true;
    return true;
  }

  bool Prepare(Context* context) {
    if (!CheckInitialized(context)) return false;
    scratch_.clear();
    for (const Step& step : steps_) {
      Error error;
      if (!PrepareStep(context, step.op, &error)) {
        return Fail(context, step.name, step.node_index, error);
      }
    }
    return true;
  }

  bool Invoke(Context* context) {
    if (!CheckInitialized(context)) return false;
    for (const Step& step : steps_) {
      Error error;
      if (!InvokeStep(*context, step.op, &error)) {
        return Fail(context, step.name, step.node_index, error);
      }
    }
    return true;
  }

 private:
  struct Step {
    const char* name;
    int node_index;
    RowOp op;
  };

  struct Memory {
    void* data;
    size_t bytes;
  };

  bool CheckInitialized(Context* context) const {
    if (!initialized_) {
      context->report_error(context, "The delegate of ocs_tf was not applied, see above.");
    }
    return initialized_;
  }

  bool Add(Context* context, int node_index) {
    NodeView node;
    if (!GetNode(context, node_index, &node) || node.name == nullptr) return false;
    Error error;
    if (node.name == kDequantize) {
      DequantizeOp op;
      folded_.emplace_back();
      return (ParseDequantize(node, &op, &error) && folded_.back().Fold(context, op, &error)) ||
             Fail(context, node.name, node_index, error);
    }
    RowOp op;
    if (!ParseRowOp(node, &op, &error)) return Fail(context, node.name, node_index, error);
    steps_.push_back({node.name, node_index, std::move(op)});
    return true;
  }

  bool PrepareStep(Context* context, const RowOp& op, Error* error) {
    RowSizes sizes;
    if (!ReadSizes(op, context->tensors[op.x], &sizes, error)) return false;
    const IntArray& x_dims = *context->tensors[op.x].dims;
    IntArrayPtr dims = MakeIntArray(x_dims.data, static_cast<size_t>(x_dims.size));
    dims->data[dims->size - 1] = static_cast<int32_t>(sizes.output_channels);
    if (!Resize(context, op.output, std::move(dims), sizes.output_bytes, error)) return false;
    const auto internal = internal_.find(op.output);
    if (internal != internal_.end()) internal->second.resize(sizes.output_bytes);
    scratch_.resize(std::max(scratch_.size(), sizes.scratch));
    return true;
  }

  // Tensors may be others than when it was prepared: everything is checked again.
  bool InvokeStep(const Context& context, const RowOp& op, Error* error) {
    RowSizes sizes;
    if (!ReadSizes(op, context.tensors[op.x], &sizes, error)) return false;
    const Memory in = MemoryOf(context, op.x);
    const Memory out = MemoryOf(context, op.output);
    if (in.bytes != context.tensors[op.x].bytes || out.bytes != sizes.output_bytes ||
        sizes.scratch > scratch_.size()) {
      return error->Set("tensors were resized, but not allocated");
    }
    if (sizes.rows == 0) return true;
    if (!IsUsable(in) || !IsUsable(out)) {
      return error->Set("`x` or `output` has no memory, or it is not aligned");
    }
    Run(op, sizes, static_cast<const float*>(in.data), scratch_.data(), out.data);
    return true;
  }

  // An `x` that is a constant of the file may be anywhere.
  static bool IsUsable(const Memory& memory) {
    return memory.data != nullptr &&
           reinterpret_cast<uintptr_t>(memory.data) % alignof(float) == 0;
  }

  Memory MemoryOf(const Context& context, int tensor) {
    const auto internal = internal_.find(tensor);
    if (internal != internal_.end()) return {internal->second.data(), internal->second.size()};
    return {context.tensors[tensor].data, context.tensors[tensor].bytes};
  }

  bool initialized_ = false;
  std::deque<FoldedTensor> folded_;  // they do not move
  std::vector<Step> steps_;          // in order
  std::map<int, std::vector<uint8_t>> internal_;
  std::vector<float> scratch_;
};

// The runtime is not written for exceptions.
template <typename Function>
bool Guard(Context* context, const Function& function) {
  try {
    return function();
  } catch (const std::exception& exception) {
    context->report_error(context, "The delegate of ocs_tf failed: %s.", exception.what());
    return false;
  }
}

Status StatusOf(bool ok) { return ok ? tflite::kOk : tflite::kError; }

// The result of a failed `init` says so when it is prepared: the runtime asks nothing before.
void* Init(Context* context, const char* buffer, size_t) {
  Partition* partition = nullptr;
  Guard(context, [&] {
    partition = new Partition;
    return partition->Init(context, *reinterpret_cast<const DelegateParams*>(buffer));
  });
  return partition;
}

void FreePartition(Context*, void* partition) { delete static_cast<Partition*>(partition); }

Status PreparePartition(Context* context, Node* node) {
  auto* partition = static_cast<Partition*>(node->user_data);
  return StatusOf(partition != nullptr &&
                  Guard(context, [&] { return partition->Prepare(context); }));
}

Status InvokePartition(Context* context, Node* node) {
  auto* partition = static_cast<Partition*>(node->user_data);
  return StatusOf(partition != nullptr &&
                  Guard(context, [&] { return partition->Invoke(context); }));
}

bool Check(const NodeView& node, Error* error) {
  if (node.name == kDequantize) {
    DequantizeOp op;
    return ParseDequantize(node, &op, error);
  }
  RowOp op;
  return ParseRowOp(node, &op, error);
}

bool Apply(Context* context, Delegate* delegate) {
  IntArray* plan = nullptr;
  if (context->get_execution_plan(context, &plan) != tflite::kOk) return false;
  const std::vector<int32_t> indices(plan->data, plan->data + plan->size);  // `plan` is reused
  std::vector<NodeView> nodes(indices.size());
  std::vector<int32_t> ours;
  Error error;
  // All are checked before any is folded: a folded tensor looks like a constant of the file.
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!GetNode(context, indices[i], &nodes[i])) return false;
    if (nodes[i].name == nullptr) continue;
    if (!Check(nodes[i], &error)) return Fail(context, nodes[i].name, indices[i], error);
    ours.push_back(indices[i]);
  }
  if (ours.empty()) return true;
  if (!CheckOrder(nodes, &error)) {
    context->report_error(context, "%s", error.text);
    return false;
  }
  Registration registration = {};
  registration.init = Init;
  registration.free = FreePartition;
  registration.prepare = PreparePartition;
  registration.invoke = InvokePartition;
  registration.builtin_code = tflite::kBuiltinDelegate;
  registration.custom_name = "OcsDelegate";
  registration.version = 1;
  const IntArrayPtr replaced = MakeIntArray(ours.data(), ours.size());
  return context->replace_node_subsets_with_delegate_kernels(context, registration,
                                                             replaced.get(),
                                                             delegate) == tflite::kOk;
}

Status PrepareDelegate(Context* context, Delegate* delegate) {
  return StatusOf(Guard(context, [&] { return Apply(context, delegate); }));
}

}  // namespace
}  // namespace ocs

int32_t ocs_library_version() { return ocs::kLibraryVersion; }

// The delegate has no options and no state, so that any number of interpreters and threads may use
// one.

ocs::tflite::Delegate* tflite_plugin_create_delegate(const char* const* keys, const char* const*,
                                                     size_t option_count,
                                                     void (*report)(const char*)) {
  // Python's binding passes 32 bits of the count.
  if (static_cast<int32_t>(option_count) > 0) {
    ocs::Error error;
    error.Set("The delegate of ocs_tf has no options, but was given `%.99s`.", keys[0]);
    if (report != nullptr) report(error.text);
    return nullptr;
  }
  auto* delegate = new (std::nothrow) ocs::tflite::Delegate();
  if (delegate == nullptr) return nullptr;
  delegate->prepare = ocs::PrepareDelegate;
  delegate->flags = ocs::tflite::kAllowDynamicTensors;
  return delegate;
}

void tflite_plugin_destroy_delegate(ocs::tflite::Delegate* delegate) { delete delegate; }
