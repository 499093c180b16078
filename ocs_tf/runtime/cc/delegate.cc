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

#include "c_api.h"
#include "ops.h"
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
    op.Run(static_cast<float*>(memory.get()));
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

// A node that the delegate takes, or with `name` nullptr one that it leaves.
struct NamedNode {
  const char* name;  // lives as long as the graph
  NodeView view;
};

bool GetNode(Context* context, int node_index, NamedNode* named) {
  Node* node = nullptr;
  Registration* registration = nullptr;
  if (context->get_node_and_registration(context, node_index, &node, &registration) !=
      tflite::kOk) {
    return false;
  }
  const char* name = registration->custom_name;
  const bool ours = registration->builtin_code == tflite::kBuiltinCustom && name != nullptr &&
                    IsOperator(name);
  named->name = ours ? name : nullptr;
  named->view = {node->inputs, node->outputs, context->tensors, context->tensors_size};
  return true;
}

// The operators of one partition of the graph.
class DelegateKernel {
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
      const int output = step.op->output;
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
      if (!PrepareStep(context, *step.op, &error)) {
        return Fail(context, step.name, step.node_index, error);
      }
    }
    return true;
  }

  bool Invoke(Context* context) {
    if (!CheckInitialized(context)) return false;
    for (const Step& step : steps_) {
      Error error;
      if (!InvokeStep(*context, *step.op, &error)) {
        return Fail(context, step.name, step.node_index, error);
      }
    }
    return true;
  }

 private:
  struct Step {
    const char* name;
    int node_index;
    std::unique_ptr<RowOp> op;
  };

  struct Memory {
    void* data;
    size_t bytes;
  };

  // The sizes of one run of a RowOp.
  struct Sizes {
    Activation x;
    size_t output_channels;
    size_t output_bytes;
    size_t scratch;  // floats
  };

  bool CheckInitialized(Context* context) const {
    if (!initialized_) {
      context->report_error(context, "The delegate of ocs_tf was not applied, see above.");
    }
    return initialized_;
  }

  bool Add(Context* context, int node_index) {
    NamedNode node;
    if (!GetNode(context, node_index, &node) || node.name == nullptr) return false;
    Error error;
    if (node.name == kDequantize) {
      DequantizeOp op;
      folded_.emplace_back();
      return (ParseDequantize(node.view, &op, &error) &&
              folded_.back().Fold(context, op, &error)) ||
             Fail(context, node.name, node_index, error);
    }
    auto op = ParseRowOp(node.name, node.view, &error);
    if (op == nullptr) return Fail(context, node.name, node_index, error);
    steps_.push_back({node.name, node_index, std::move(op)});
    return true;
  }

  static bool GetSizes(const Context& context, const RowOp& op, Sizes* sizes, Error* error) {
    if (!ReadActivation(context.tensors[op.x], &sizes->x, error) ||
        !op.OutputChannels(sizes->x.channels, &sizes->output_channels, error)) {
      return false;
    }
    const size_t width = op.output_type == tflite::kInt8 ? sizeof(int8_t) : sizeof(float);
    size_t elements;
    if (sizes->output_channels > INT32_MAX ||
        !Multiply(sizes->x.rows, sizes->output_channels, &elements) ||
        !Multiply(elements, width, &sizes->output_bytes) ||
        !Multiply(sizes->x.rows, op.Scratch(sizes->x.channels), &sizes->scratch)) {
      return error->Set("`x` is too large");
    }
    return true;
  }

  bool PrepareStep(Context* context, const RowOp& op, Error* error) {
    Sizes sizes;
    if (!GetSizes(*context, op, &sizes, error)) return false;
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
    Sizes sizes;
    if (!GetSizes(context, op, &sizes, error)) return false;
    const Memory in = MemoryOf(context, op.x);
    const Memory out = MemoryOf(context, op.output);
    if (in.bytes != context.tensors[op.x].bytes || out.bytes != sizes.output_bytes ||
        sizes.scratch > scratch_.size()) {
      return error->Set("tensors were resized, but not allocated");
    }
    if (sizes.x.rows == 0) return true;
    if (!IsUsable(in) || !IsUsable(out)) {
      return error->Set("`x` or `output` has no memory, or it is not aligned");
    }
    op.Run(static_cast<const float*>(in.data), sizes.x.rows, sizes.x.channels, scratch_.data(),
           out.data);
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
  DelegateKernel* kernel = nullptr;
  Guard(context, [&] {
    kernel = new DelegateKernel;
    return kernel->Init(context, *reinterpret_cast<const DelegateParams*>(buffer));
  });
  return kernel;
}

void FreeKernel(Context*, void* kernel) { delete static_cast<DelegateKernel*>(kernel); }

Status PrepareKernel(Context* context, Node* node) {
  auto* kernel = static_cast<DelegateKernel*>(node->user_data);
  return StatusOf(kernel != nullptr &&
                  Guard(context, [&] { return kernel->Prepare(context); }));
}

Status InvokeKernel(Context* context, Node* node) {
  auto* kernel = static_cast<DelegateKernel*>(node->user_data);
  return StatusOf(kernel != nullptr && Guard(context, [&] { return kernel->Invoke(context); }));
}

bool Check(const NamedNode& node, Error* error) {
  if (node.name == kDequantize) {
    DequantizeOp op;
    return ParseDequantize(node.view, &op, error);
  }
  return ParseRowOp(node.name, node.view, error) != nullptr;
}

// Whether each tensor is made before it is read. Runtimes partition a graph with a circle to death.
bool CheckOrder(Context* context, const std::vector<NamedNode>& nodes) {
  std::vector<bool> is_due(context->tensors_size);  // some node is still to make it
  const auto set_outputs = [&](const NamedNode& node, bool value) {
    for (int i = 0; node.view.outputs != nullptr && i < node.view.outputs->size; ++i) {
      const auto output = static_cast<size_t>(node.view.outputs->data[i]);
      if (output < is_due.size()) is_due[output] = value;
    }
  };
  for (const NamedNode& node : nodes) set_outputs(node, true);
  for (const NamedNode& node : nodes) {
    for (int i = 0; node.view.inputs != nullptr && i < node.view.inputs->size; ++i) {
      const auto input = static_cast<size_t>(node.view.inputs->data[i]);
      if (input < is_due.size() && is_due[input]) {
        context->report_error(context, "The operators are not in order: tensor %d is read before"
                              " it is made.", node.view.inputs->data[i]);
        return false;
      }
    }
    set_outputs(node, false);
  }
  return true;
}

bool Apply(Context* context, Delegate* delegate) {
  IntArray* plan = nullptr;
  if (context->get_execution_plan(context, &plan) != tflite::kOk) return false;
  const std::vector<int32_t> indices(plan->data, plan->data + plan->size);  // `plan` is reused
  std::vector<NamedNode> nodes(indices.size());
  std::vector<int32_t> ours;
  // All are checked before any is folded: a folded tensor looks like a constant of the file.
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!GetNode(context, indices[i], &nodes[i])) return false;
    if (nodes[i].name == nullptr) continue;
    Error error;
    if (!Check(nodes[i], &error)) return Fail(context, nodes[i].name, indices[i], error);
    ours.push_back(indices[i]);
  }
  if (ours.empty()) return true;
  if (!CheckOrder(context, nodes)) return false;
  Registration registration = {};
  registration.init = Init;
  registration.free = FreeKernel;
  registration.prepare = PrepareKernel;
  registration.invoke = InvokeKernel;
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

// The two functions that a runtime looks for. The delegate has no options and no state, so that any
// number of interpreters and threads may use one.

OCS_EXPORT ocs::tflite::Delegate* tflite_plugin_create_delegate(const char* const* keys,
                                                                const char* const*,
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

OCS_EXPORT void tflite_plugin_destroy_delegate(ocs::tflite::Delegate* delegate) {
  delete delegate;
}
