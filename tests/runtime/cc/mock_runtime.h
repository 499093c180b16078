// A stand-in for a TFLite runtime: one graph, and what a delegate may ask of a runtime. All memory
// is on the heap in its exact size, so that AddressSanitizer sees every access beyond it.

#ifndef OCS_TF_TESTS_RUNTIME_MOCK_RUNTIME_H_
#define OCS_TF_TESTS_RUNTIME_MOCK_RUNTIME_H_

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "exports.h"
#include "tflite_abi.h"

namespace ocs::testing {

using tflite::Context;
using tflite::Delegate;
using tflite::IntArray;
using tflite::Status;
using tflite::Tensor;

inline size_t SizeOf(int32_t type) {
  switch (type) {
    case tflite::kFloat32:
    case tflite::kInt32: return 4;
    case tflite::kUInt8:
    case tflite::kInt8: return 1;
    default: return 8;
  }
}

inline IntArray* NewIntArray(const std::vector<int32_t>& values) {
  auto* array = static_cast<IntArray*>(
      std::malloc(sizeof(int32_t) + std::max<size_t>(1, values.size()) * sizeof(int32_t)));
  array->size = static_cast<int32_t>(values.size());
  std::copy(values.begin(), values.end(), array->data);
  return array;
}

inline std::vector<int32_t> Values(const IntArray& array) {
  return {array.data, array.data + array.size};
}

class MockRuntime {
 public:
  MockRuntime() {
    context_.impl = this;
    context_.get_execution_plan = [](Context* context, IntArray** plan) {
      auto* self = Self(context);
      std::free(self->plan_array_);
      self->plan_array_ = NewIntArray(self->plan_);
      *plan = self->plan_array_;
      return tflite::kOk;
    };
    context_.get_node_and_registration = [](Context* context, int index, tflite::Node** node,
                                            tflite::Registration** registration) {
      auto& nodes = Self(context)->nodes_;
      if (index < 0 || static_cast<size_t>(index) >= nodes.size()) return tflite::kError;
      *node = &nodes[index]->node;
      *registration = &nodes[index]->registration;
      return tflite::kOk;
    };
    context_.resize_tensor = [](Context* context, Tensor* tensor, IntArray* dims) {
      return Self(context)->Resize(tensor, dims);
    };
    context_.report_error = Report;
    context_.replace_node_subsets_with_delegate_kernels =
        [](Context* context, tflite::Registration registration, const IntArray* nodes,
           Delegate* delegate) {
          auto* self = Self(context);
          if (!self->separate_partitions) {
            return self->Replace(registration, Values(*nodes), delegate);
          }
          for (const int32_t node : Values(*nodes)) self->Replace(registration, {node}, delegate);
          return tflite::kOk;
        };
  }

  MockRuntime(const MockRuntime&) = delete;
  MockRuntime& operator=(const MockRuntime&) = delete;

  ~MockRuntime() {
    Undo();
    std::free(plan_array_);
    for (const auto& entry : nodes_) {
      std::free(entry->node.inputs);
      std::free(entry->node.outputs);
    }
    for (const Tensor& tensor : tensors_) std::free(tensor.dims);
  }

  // Of memory that the runtime gives; see `Allocate`.
  int AddTensor(int32_t type, const std::vector<int32_t>& dims) {
    Tensor tensor = {};
    tensor.type = type;
    tensor.allocation_type = tflite::kArenaRw;
    tensor.dims = NewIntArray(dims);
    SetBytes(&tensor);
    tensors_.push_back(tensor);
    Share();
    return static_cast<int>(tensors_.size()) - 1;
  }

  // A constant of the file. `misalign` bytes are put in front of the data.
  int AddConstant(int32_t type, const std::vector<int32_t>& dims, const void* data, size_t bytes,
                  size_t misalign = 0) {
    const int index = AddTensor(type, dims);
    memory_.push_back(std::make_unique<char[]>(misalign + bytes));
    char* start = memory_.back().get() + misalign;
    if (bytes > 0) std::memcpy(start, data, bytes);
    tensors_[index].data = start;
    tensors_[index].bytes = bytes;
    tensors_[index].allocation_type = tflite::kMmapRo;
    return index;
  }

  template <typename T>
  int AddConstant(int32_t type, const std::vector<T>& values, size_t misalign = 0) {
    return AddConstant(type, {static_cast<int32_t>(values.size())}, values.data(),
                       values.size() * sizeof(T), misalign);
  }

  int AddNode(const std::string& custom_name, const std::vector<int32_t>& inputs,
              const std::vector<int32_t>& outputs) {
    auto entry = std::make_unique<Entry>();
    entry->registration.builtin_code = tflite::kBuiltinCustom;
    entry->custom_name = custom_name;
    entry->registration.custom_name = entry->custom_name.c_str();
    entry->node.inputs = NewIntArray(inputs);
    entry->node.outputs = NewIntArray(outputs);
    nodes_.push_back(std::move(entry));
    plan_.push_back(static_cast<int32_t>(nodes_.size()) - 1);
    return plan_.back();
  }

  Status Apply(Delegate* delegate) { return delegate->prepare(&context_, delegate); }

  // What the application does before it allocates anew.
  void SetDims(int index, const std::vector<int32_t>& dims) {
    Resize(&tensors_[index], NewIntArray(dims));
  }

  // Prepares the partitions, then gives memory to the tensors that they do not keep to themselves.
  Status Allocate() {
    for (const auto& partition : partitions_) {
      const Status status = partition->registration.prepare(&context_, &partition->node);
      if (status != tflite::kOk) return status;
    }
    for (size_t i = 0; i < tensors_.size(); ++i) {
      Tensor& tensor = tensors_[i];
      if (tensor.allocation_type != tflite::kArenaRw || IsInternal(static_cast<int>(i))) continue;
      if (tensor.bytes > most_bytes) return tflite::kError;
      memory_.push_back(std::make_unique<char[]>(tensor.bytes));
      tensor.data = memory_.back().get();
    }
    return tflite::kOk;
  }

  Status Invoke() {
    for (const auto& partition : partitions_) {
      const Status status = partition->registration.invoke(&context_, &partition->node);
      if (status != tflite::kOk) return status;
    }
    return tflite::kOk;
  }

  // Frees the partitions, as a runtime does before it applies delegates again.
  void Undo() {
    for (const auto& partition : partitions_) {
      if (partition->node.user_data != nullptr) {
        partition->registration.free(&context_, partition->node.user_data);
      }
    }
    partitions_.clear();
  }

  Tensor& tensor(int index) { return tensors_[index]; }
  tflite::Node& node(int index) { return nodes_[index]->node; }
  tflite::Registration& registration(int index) { return nodes_[index]->registration; }
  size_t partition_count() const { return partitions_.size(); }
  Context* context() { return &context_; }

  template <typename T>
  std::vector<T> Get(int index) const {
    const Tensor& tensor = tensors_[index];
    std::vector<T> values(tensor.bytes / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), tensor.data, values.size() * sizeof(T));
    return values;
  }

  template <typename T>
  void Set(int index, const std::vector<T>& values) {
    std::memcpy(tensors_[index].data, values.data(), values.size() * sizeof(T));
  }

  std::string errors;                // one line each
  std::vector<int> graph_outputs;    // tensors that the application reads
  bool separate_partitions = false;  // each node is one of its own
  size_t most_bytes = 1 << 22;       // of one tensor; more is an error of `resize_tensor`

 private:
  struct Entry {
    std::string custom_name;
    tflite::Node node = {};
    tflite::Registration registration = {};
  };

  struct Partition {
    ~Partition() {
      std::free(params.nodes_to_replace);
      std::free(params.input_tensors);
      std::free(params.output_tensors);
    }
    tflite::Node node = {};
    tflite::Registration registration = {};
    tflite::DelegateParams params = {};
  };

  static void Report(Context* context, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    Self(context)->errors += std::string(text) + "\n";
  }

  static MockRuntime* Self(Context* context) { return static_cast<MockRuntime*>(context->impl); }

  void Share() {
    context_.tensors = tensors_.data();
    context_.tensors_size = tensors_.size();
  }

  static bool SetBytes(Tensor* tensor) {
    size_t bytes = SizeOf(tensor->type);
    for (const int32_t size : Values(*tensor->dims)) {
      if (size < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) {
        return false;
      }
    }
    tensor->bytes = bytes;
    return true;
  }

  Status Resize(Tensor* tensor, IntArray* dims) {
    if (tensor->allocation_type == tflite::kMmapRo) {
      std::free(dims);
      errors += "Attempting to resize a fixed-size tensor.\n";
      return tflite::kError;
    }
    std::free(tensor->dims);
    tensor->dims = dims;
    tensor->data = nullptr;
    return SetBytes(tensor) && tensor->bytes <= most_bytes ? tflite::kOk : tflite::kError;
  }

  Status Replace(const tflite::Registration& registration, const std::vector<int32_t>& nodes,
                 Delegate* delegate) {
    auto partition = std::make_unique<Partition>();
    std::vector<int32_t> outputs;
    for (const int32_t node : nodes) {
      for (const int32_t output : Values(*nodes_[node]->node.outputs)) {
        if (IsReadOutside(output, nodes)) outputs.push_back(output);
      }
    }
    partition->registration = registration;
    partition->params = {delegate, NewIntArray(nodes), NewIntArray({}), NewIntArray(outputs)};
    partitions_.push_back(std::move(partition));
    Partition& last = *partitions_.back();
    last.node.user_data = registration.init(
        &context_, reinterpret_cast<const char*>(&last.params), sizeof(last.params));
    return tflite::kOk;
  }

  bool IsReadOutside(int tensor, const std::vector<int32_t>& nodes) const {
    if (Has(graph_outputs, tensor)) return true;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const bool inside = Has(nodes, static_cast<int>(i));
      if (!inside && Has(Values(*nodes_[i]->node.inputs), tensor)) return true;
    }
    return false;
  }

  bool IsInternal(int tensor) const {
    for (const auto& partition : partitions_) {
      for (const int32_t node : Values(*partition->params.nodes_to_replace)) {
        if (Has(Values(*nodes_[node]->node.outputs), tensor) &&
            !Has(Values(*partition->params.output_tensors), tensor)) {
          return true;
        }
      }
    }
    return false;
  }

  static bool Has(const std::vector<int32_t>& values, int value) {
    return std::find(values.begin(), values.end(), value) != values.end();
  }

  Context context_ = {};
  std::vector<Tensor> tensors_;
  std::vector<std::unique_ptr<Entry>> nodes_;
  std::vector<int32_t> plan_;
  IntArray* plan_array_ = nullptr;
  std::vector<std::unique_ptr<Partition>> partitions_;
  std::vector<std::unique_ptr<char[]>> memory_;
};

}  // namespace ocs::testing

#endif  // OCS_TF_TESTS_RUNTIME_MOCK_RUNTIME_H_
