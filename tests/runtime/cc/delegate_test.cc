// The delegate in a mock runtime: what it computes, what it refuses, what it gives back.

#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "mock_runtime.h"
#include "test_nodes.h"

namespace ocs::testing {
namespace {

int failures = 0;

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
      ++failures;                                                            \
    }                                                                        \
  } while (false)

struct DestroyDelegate {
  void operator()(Delegate* delegate) const { tflite_plugin_destroy_delegate(delegate); }
};
using DelegatePtr = std::unique_ptr<Delegate, DestroyDelegate>;

DelegatePtr MakeDelegate() {
  return DelegatePtr(tflite_plugin_create_delegate(nullptr, nullptr, 0, nullptr));
}

// 4 bits; 2 rows of [1, 2 pixels, 3 channels], with copies of channels 2 and 0.
NodeSpec Dequantize() {
  const TensorSpec packed = Packed({{1, -2, 3, -4, 5, -6, 7, -7, 1, 2},
                                    {0, 1, 2, 3, 4, 5, -1, -2, -3, -4}},
                                   4);
  return {"OcsDequantize",
          {packed, Floats({0.5f, 0.25f}), Ints({1, 4, 1, 2, 2, 1, 2, 3}), Ints({2, 0})},
          Computed(tflite::kFloat32, {2, 1, 2, 3})};
}
const std::vector<float> kDequantized = {
    0.5f * (1 - 7),  0.5f * -2,  0.5f * (3 + 7),  0.5f * (-4 + 2),  0.5f * 5,  0.5f * (-6 + 1),
    0.25f * (0 - 2), 0.25f * 1,  0.25f * (2 - 1), 0.25f * (3 - 4),  0.25f * 4, 0.25f * (5 - 3)};

// 3 channels and a copy of channel 1; codes -8 .. 7 around 2.
NodeSpec Quantize() {
  return {"OcsQuantize",
          {Computed(tflite::kFloat32, {2, 3}), Floats({1, 2, 4, 0.5f}), Ints({1, -8, 7, 2}),
           Ints({1})},
          Computed(tflite::kInt8, {2, 4})};
}
const std::vector<float> kX = {0.5f, 1.25f, -9, 2.5f, std::nanf(""), 100};
const std::vector<int8_t> kQuantized = {2, 2 + 2, -8, 2 + 1, 2 + 2, 2, 7, 2};

// The same codes.
NodeSpec FakeQuantize() {
  return {"OcsFakeQuantize",
          {Computed(tflite::kFloat32, {2, 3}), Floats({1, 2, 4, 0.5f}),
           Floats({1, 0.5f, 0.25f, 2}), Ints({1, -8, 7, 2}), Ints({1})},
          Computed(tflite::kFloat32, {2, 4})};
}
const std::vector<float> kFakeQuantized = {0, 2 * 0.5f, -10 * 0.25f, 2, 2, 0, 5 * 0.25f, 0};

// 3 bits; 2 outputs, 4 channels and a copy of channel 3; ReLU6.
NodeSpec FullyConnected() {
  return {"OcsFullyConnected",
          {Computed(tflite::kFloat32, {2, 4}), Packed({{1, 2, 3, -3, 1}, {-1, 0, 2, 3, -2}}, 3),
           Floats({0.5f, 2}), Ints({1, 3, 1, 2, 2, 4}), Floats({1, -1}), Ints({3})},
          Computed(tflite::kFloat32, {2, 2})};
}
const std::vector<float> kConnectedX = {1, 2, 3, 4, -1, -2, 0.5f, 1};
const std::vector<float> kConnected = {
    0.5f * (1 + 2 * 2 + 3 * 3 + 4 * (-3 + 1)) + 1, 6,  // 2 * (-1 + 2 * 3 + 4 * (3 - 2)) - 1 = 17
    0, 2 * (1 + 2 * 0.5f + (3 - 2)) - 1};              // 0.5 * (-1 - 4 + 1.5 - 3 + 1) + 1 < 0

void FoldsWeights() {
  const DelegatePtr delegate = MakeDelegate();
  for (const size_t misalign : {0, 1, 3}) {
    MockRuntime runtime;
    const AddedNode node = AddNode(&runtime, Dequantize(), -1, misalign);
    for (int times = 0; times < 3; ++times) {
      CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
      CHECK(runtime.partition_count() == 1);
      // A constant before anything is prepared: the next delegate takes it for weights.
      const Tensor& output = runtime.tensor(node.output);
      CHECK(output.allocation_type == tflite::kMmapRo);
      CHECK(reinterpret_cast<uintptr_t>(output.data) % 64 == 0);
      CHECK(Values(*output.dims) == (std::vector<int32_t>{2, 1, 2, 3}));
      CHECK(runtime.Get<float>(node.output) == kDequantized);
      CHECK(runtime.Allocate() == tflite::kOk);
      CHECK(runtime.Invoke() == tflite::kOk);
      runtime.Undo();
      CHECK(runtime.tensor(node.output).data == nullptr);
      CHECK(runtime.tensor(node.output).allocation_type == tflite::kArenaRw);
    }
    CHECK(runtime.errors.empty());
  }
}

template <typename T>
void Runs(const NodeSpec& spec, const std::vector<float>& values, const std::vector<T>& expected) {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  const AddedNode node = AddNode(&runtime, spec, -1, 1);
  runtime.graph_outputs = {node.output};
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  const int32_t channels = spec.inputs[0].dims.back();
  const int32_t width = spec.output.dims.back();
  for (const int batch : {2, 1, 0, 6, 2}) {
    runtime.SetDims(node.inputs[0], {batch, channels});
    CHECK(runtime.Allocate() == tflite::kOk);
    CHECK(Values(*runtime.tensor(node.output).dims) == (std::vector<int32_t>{batch, width}));
    std::vector<float> x;
    std::vector<T> out;
    for (int row = 0; row < batch; ++row) {
      const auto from = values.begin() + row % 2 * channels;
      const auto expected_from = expected.begin() + row % 2 * width;
      x.insert(x.end(), from, from + channels);
      out.insert(out.end(), expected_from, expected_from + width);
    }
    if (batch > 0) runtime.Set(node.inputs[0], x);
    CHECK(runtime.Invoke() == tflite::kOk);
    CHECK(runtime.Get<T>(node.output) == out);
  }
  // More dimensions, one row.
  runtime.SetDims(node.inputs[0], {1, 1, 1, channels});
  CHECK(runtime.Allocate() == tflite::kOk);
  CHECK(Values(*runtime.tensor(node.output).dims) == (std::vector<int32_t>{1, 1, 1, width}));
  CHECK(runtime.errors.empty());
}

NodeSpec WithoutCopiesAndBias() {
  NodeSpec spec = FullyConnected();
  spec.inputs = {Computed(tflite::kFloat32, {2, 4}), Packed({{1, 2, 3, -3}, {-1, 0, 2, 3}}, 8),
                 Floats({0.5f}), Ints({1, 8, 0, 0, 2, 4})};
  return spec;
}
const std::vector<float> kConnectedPlainly = {0.5f * (1 + 4 + 9 - 12), 0.5f * (-1 + 6 + 12),
                                              0.5f * (-1 - 4 + 1.5f - 3), 0.5f * (1 + 1 + 3)};

// x -> OcsFakeQuantize (3 -> 4) -> OcsFullyConnected (4 -> 2) -> OcsQuantize, where only the end is
// seen outside, in one partition or in three.
void RunsChains(bool separate_partitions) {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  runtime.separate_partitions = separate_partitions;
  const AddedNode first = AddNode(&runtime, FakeQuantize());
  const AddedNode second = AddNode(&runtime, WithoutCopiesAndBias(), first.output);
  NodeSpec last = Quantize();
  last.inputs = {last.inputs[0], Floats({4}), Ints({1, -128, 127, 0})};
  const AddedNode third = AddNode(&runtime, last, second.output);
  runtime.graph_outputs = {third.output};
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  CHECK(runtime.partition_count() == (separate_partitions ? 3 : 1));
  for (const int batch : {2, 3, 1, 0, 2}) {
    runtime.SetDims(first.inputs[0], {batch, 3});
    CHECK(runtime.Allocate() == tflite::kOk);
    if (batch > 0) runtime.Set(first.inputs[0], std::vector<float>(kX.begin(), kX.begin() + 3));
    CHECK(runtime.Invoke() == tflite::kOk);
    const auto out = runtime.Get<int8_t>(third.output);
    CHECK(out.size() == static_cast<size_t>(2 * batch));
    if (batch == 0) continue;
    const float* q = kFakeQuantized.data();
    CHECK(out[0] == static_cast<int8_t>(std::nearbyint(
                        4 * 0.5f * (q[0] + 2 * q[1] + 3 * q[2] - 3 * q[3]))));
    CHECK(out[1] == static_cast<int8_t>(std::nearbyint(4 * 0.5f * (-q[0] + 2 * q[2] + 3 * q[3]))));
  }
}

// Weights that are an output of the graph and the `x` of an operator.
void FoldedWeightsAreRead() {
  const DelegatePtr delegate = MakeDelegate();
  for (const bool separate_partitions : {false, true}) {
    MockRuntime runtime;
    runtime.separate_partitions = separate_partitions;
    const AddedNode weights = AddNode(&runtime, Dequantize());
    NodeSpec round = Quantize();
    round.inputs = {round.inputs[0], Floats({4}), Ints({1, -128, 127, 0})};
    const AddedNode rounded = AddNode(&runtime, round, weights.output);
    runtime.graph_outputs = {weights.output, rounded.output};
    CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
    CHECK(runtime.Allocate() == tflite::kOk);
    CHECK(runtime.Invoke() == tflite::kOk);
    const auto out = runtime.Get<int8_t>(rounded.output);
    CHECK(out.size() == kDequantized.size());
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == 4 * kDequantized[i]);
  }
}

void OtherOperatorsAreLeft() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  const AddedNode other = AddNode(&runtime, {"OcsSomethingElse", {}, Computed(1, {1})});
  const AddedNode nameless = AddNode(&runtime, Quantize());
  runtime.registration(nameless.node).custom_name = nullptr;
  const AddedNode builtin = AddNode(&runtime, Quantize());
  runtime.registration(builtin.node).builtin_code = 6;
  CHECK(other.node == 0);
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  CHECK(runtime.partition_count() == 0);
}

// Runtimes do not survive a circle when they partition the graph.
void GraphsMustBeInOrder() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  const AddedNode first = AddNode(&runtime, WithoutCopiesAndBias());
  const AddedNode second = AddNode(&runtime, FakeQuantize(), first.output);
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  CHECK(runtime.errors.empty());
  runtime.Undo();
  runtime.node(first.node).inputs->data[0] = second.output;
  CHECK(runtime.Apply(delegate.get()) == tflite::kError);
  CHECK(runtime.errors == "The operators are not in order: tensor " +
                              std::to_string(second.output) + " is read before it is made.\n");
  CHECK(runtime.partition_count() == 0);
}

// Half of the weights can be folded: nothing may be left behind.
void FoldingFailsHalfWay() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  const AddedNode first = AddNode(&runtime, Dequantize());
  const AddedNode second = AddNode(&runtime, Dequantize());
  runtime.node(second.node).outputs->data[0] = first.output;
  runtime.Apply(delegate.get());
  CHECK(runtime.errors.find("OcsDequantize (operator 1): `output` must not be a constant") == 0);
  CHECK(runtime.Allocate() == tflite::kError);
  CHECK(runtime.errors.find("was not applied") != std::string::npos);
  runtime.Undo();
  CHECK(runtime.tensor(first.output).data == nullptr);
  CHECK(runtime.tensor(first.output).allocation_type == tflite::kArenaRw);
}

// Memory that the application gave to an output stays where it is: it cannot be folded.
void MemoryOfTheApplicationIsKept() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  const AddedNode node = AddNode(&runtime, Dequantize());
  runtime.tensor(node.output).allocation_type = tflite::kCustom;
  runtime.Apply(delegate.get());
  CHECK(runtime.errors.find("its output has memory of its own") != std::string::npos);
  CHECK(runtime.tensor(node.output).allocation_type == tflite::kCustom);
  CHECK(runtime.Allocate() == tflite::kError);
}

void LargeTensorsAreRefused() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  const AddedNode node = AddNode(&runtime, Quantize());
  runtime.graph_outputs = {node.output};
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  runtime.most_bytes = 1 << 24;
  runtime.SetDims(node.inputs[0], {1 << 20, 3});
  CHECK(runtime.tensor(node.inputs[0]).bytes == (3 << 20) * sizeof(float));
  CHECK(runtime.Allocate() == tflite::kOk);
  runtime.most_bytes = 4 * (1 << 20) - 1;
  CHECK(runtime.Allocate() == tflite::kError);
  CHECK(runtime.errors.find("did not resize its output to 4194304 bytes") != std::string::npos);
}

// The runtime is not written for exceptions.
void ExceptionsBecomeErrors() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  runtime.most_bytes = SIZE_MAX;
  const AddedNode first = AddNode(&runtime, FakeQuantize());
  const AddedNode last = AddNode(&runtime, WithoutCopiesAndBias(), first.output);
  runtime.graph_outputs = {last.output};
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  // What is kept within the partition, 4 channels, is larger than any std::vector.
  runtime.SetDims(first.inputs[0], {1 << 30, 1 << 29, 3});
  CHECK(runtime.Allocate() == tflite::kError);
  CHECK(runtime.errors.find("The delegate of ocs_tf failed: ") == 0);
}

void ResizedAndNotAllocated() {
  const DelegatePtr delegate = MakeDelegate();
  MockRuntime runtime;
  const AddedNode node = AddNode(&runtime, FullyConnected());
  runtime.graph_outputs = {node.output};
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  CHECK(runtime.Invoke() == tflite::kError);  // not yet prepared
  CHECK(runtime.Allocate() == tflite::kOk);
  runtime.SetDims(node.inputs[0], {3, 4});
  CHECK(runtime.Invoke() == tflite::kError);
  CHECK(runtime.errors.find("resized, but not allocated") != std::string::npos);
  runtime.SetDims(node.inputs[0], {2, 5});
  CHECK(runtime.Invoke() == tflite::kError);
  CHECK(runtime.errors.find("`x` has 5 channels, but must have 4") != std::string::npos);
  runtime.SetDims(node.inputs[0], {2, 4});
  CHECK(runtime.Invoke() == tflite::kError);
  CHECK(runtime.errors.find("has no memory") != std::string::npos);
}

void OptionsAreRefused() {
  static std::string reported;
  const auto report = [](const char* text) { reported = text; };
  const char* keys[] = {"speed"};
  const char* values[] = {"high"};
  CHECK(tflite_plugin_create_delegate(keys, values, 1, report) == nullptr);
  CHECK(reported.find("`speed`") != std::string::npos);
  CHECK(tflite_plugin_create_delegate(keys, values, 1, nullptr) == nullptr);
  // Only 32 bits of the count can be relied on.
  const DelegatePtr delegate(
      tflite_plugin_create_delegate(nullptr, nullptr, size_t{1} << 32, report));
  CHECK(delegate != nullptr);
  CHECK(delegate->flags == tflite::kAllowDynamicTensors);
}

void ThreadsShareADelegate() {
  const DelegatePtr delegate = MakeDelegate();
  std::vector<std::thread> threads;
  std::vector<std::vector<int8_t>> results(4);
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int times = 0; times < 50; ++times) {
        MockRuntime runtime;
        const AddedNode weights = AddNode(&runtime, Dequantize());
        const AddedNode node = AddNode(&runtime, Quantize());
        runtime.graph_outputs = {node.output, weights.output};
        runtime.Apply(delegate.get());
        runtime.Allocate();
        runtime.Set(node.inputs[0], kX);
        runtime.Invoke();
        result = runtime.Get<int8_t>(node.output);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result == kQuantized);
}

struct Malformed {
  const char* message;
  NodeSpec spec;
  std::function<void(NodeSpec*)> damage;
  std::function<void(MockRuntime*, const AddedNode&)> damage_runtime;
};

std::vector<Malformed> MalformedNodes() {
  using Spec = NodeSpec*;
  using Runtime = MockRuntime*;
  using Node = const AddedNode&;
  const auto meta = [](int input, size_t position, int32_t value) {
    return [=](Spec spec) {
      std::memcpy(&spec->inputs[input].data[4 * position], &value, sizeof(value));
    };
  };
  const auto input = [](int input, TensorSpec tensor) {
    return [=](Spec spec) { spec->inputs[input] = tensor; };
  };
  const NodeSpec d = Dequantize(), q = Quantize(), f = FakeQuantize(), c = FullyConnected();
  constexpr int32_t kLarge = std::numeric_limits<int32_t>::max();
  return {
      // What all have in common.
      {"it has 2 inputs", d, [](Spec s) { s->inputs.resize(2); }, {}},
      {"it has 5 inputs", d, [](Spec s) { s->inputs.push_back(Ints({1})); }, {}},
      {"it has 2 inputs", q, [](Spec s) { s->inputs.resize(2); }, {}},
      {"it has 3 inputs", c, [](Spec s) { s->inputs.resize(3); }, {}},
      {"it has 0 outputs", d, {}, [](Runtime r, Node n) { r->node(n.node).outputs->size = 0; }},
      {"it has 0 inputs", q, {},
       [](Runtime r, Node n) {
         std::free(r->node(n.node).inputs);
         r->node(n.node).inputs = nullptr;
       }},
      {"`packed` is tensor 99 of", d, {},
       [](Runtime r, Node n) { r->node(n.node).inputs->data[0] = 99; }},
      {"`packed` is tensor -2 of", d, {},
       [](Runtime r, Node n) { r->node(n.node).inputs->data[0] = -2; }},
      {"`x` is tensor -1 of", q, {},
       [](Runtime r, Node n) { r->node(n.node).inputs->data[0] = -1; }},
      {"`output` is tensor 99 of", d, {},
       [](Runtime r, Node n) { r->node(n.node).outputs->data[0] = 99; }},
      {"`packed` (input 0) is missing", d, input(0, Missing()), {}},
      {"`scale` (input 1) is missing", d, input(1, Missing()), {}},
      {"the type of `packed` is int32 (2), but must be uint8", d, input(0, Ints({1, 2})), {}},
      {"the type of `scale` is int32", d, input(1, Ints({1, 2})), {}},
      {"the type of `meta` is float32", d, input(2, Floats({1, 2})), {}},
      {"the type of `copies` is float32", d, input(3, Floats({1, 2})), {}},
      {"the type of `x` is int32", q, input(0, Computed(tflite::kInt32, {2, 3})), {}},
      {"the type of `output` is another one (10)", d,
       [](Spec s) { s->output = Computed(10, {2, 1, 2, 3}); }, {}},
      {"the type of `output` is float32 (1), but must be int8", q,
       [](Spec s) { s->output = Computed(tflite::kFloat32, {2, 4}); }, {}},
      {"`meta` (input 2) must be a constant", d, input(2, Computed(tflite::kInt32, {8})), {}},
      {"`scale` (input 1) must be a constant", d, {},
       [](Runtime r, Node n) { r->tensor(n.inputs[1]).data = nullptr; }},
      {"`scale` must have one dimension", d, [](Spec s) { s->inputs[1].dims = {2, 1}; }, {}},
      {"`scale` must have one dimension", d, [](Spec s) { s->inputs[1].dims = {}; }, {}},
      {"`scale` must have one dimension", d, [](Spec s) { s->inputs[1].dims = {-2}; }, {}},
      {"`scale` has 8 bytes, but 3 elements", d, [](Spec s) { s->inputs[1].dims = {3}; }, {}},
      {"`scale` has 8 bytes, but 2147483647 elements", d,
       [=](Spec s) { s->inputs[1].dims = {kLarge}; }, {}},
      {"`output` must not be a constant", d, {},
       [](Runtime r, Node n) { r->tensor(n.output).allocation_type = tflite::kMmapRo; }},
      {"`output` must not be a constant", q, {},
       [](Runtime r, Node n) { r->tensor(n.output).allocation_type = tflite::kPersistentRo; }},
      {"`output` must not be a constant or a variable", q, {},
       [](Runtime r, Node n) { r->tensor(n.output).is_variable = true; }},
      {"`output` is `x`", f, {},
       [](Runtime r, Node n) { r->node(n.node).outputs->data[0] = n.inputs[0]; }},
      {"`meta` is of version 2 of the format", d, meta(2, 0, 2), {}},
      {"`meta` is of version 0 of the format", c, meta(3, 0, 0), {}},
      {"`meta` has 0 elements, but must have 5 to 12", d, input(2, Ints({})), {}},
      {"`meta` has 4 elements, but must have 5 to 12", d, input(2, Ints({1, 4, 1, 2})), {}},
      {"`meta` has 13 elements", d, input(2, Ints(std::vector<int32_t>(13, 1))), {}},
      {"`meta` has 3 elements, but must have 4 to 4", q, input(2, Ints({1, 0, 1})), {}},
      {"`meta` has 7 elements, but must have 6 to 6", c, input(3, Ints({1, 3, 1, 2, 2, 4, 0})),
       {}},
      // OcsDequantize.
      {"`meta` has 1 bits", d, meta(2, 1, 1), {}},
      {"`meta` has 9 bits", d, meta(2, 1, 9), {}},
      {"`meta` has -4 bits", d, meta(2, 1, -4), {}},
      {"`meta` has scaling 3, but must have 0 to 2", d, meta(2, 2, 3), {}},
      {"`meta` has scaling -1", d, meta(2, 2, -1), {}},
      {"`meta` has 0 rows", d, meta(2, 3, 0), {}},
      {"`meta` has -2 rows", d, meta(2, 3, -2), {}},
      {"`meta` has 5 rows, which do not divide the 12 elements", d, meta(2, 3, 5), {}},
      {"the last dimension in `meta`, 3, does not divide the 1 columns", d, meta(2, 3, 12), {}},
      {"`meta` has a dimension of 0", d, meta(2, 5, 0), {}},
      {"`meta` has a dimension of -1", d, meta(2, 7, -1), {}},
      {"the shape in `meta` is too large", d,
       input(2, Ints({1, 4, 1, 2, kLarge, kLarge, kLarge, 3})), {}},
      {"the shape in `meta` is too large", d,
       input(2, Ints({1, 4, 1, 1, 1 << 30, 1 << 30, 4, 1})), {}},
      {"the shape in `meta` is too large for 8 copies", d,
       [](Spec s) {
         s->inputs[2] = Ints({1, 8, 0, 1, 1 << 30, 1 << 30, 2, 1});
         s->inputs[3] = Ints({0, 0, 0, 0, 0, 0, 0, 0});
       },
       {}},
      {"`copies` has channel 3, but there are 3", d, input(3, Ints({2, 3})), {}},
      {"`copies` has channel -1", d, input(3, Ints({2, -1})), {}},
      {"`packed` has 10 bytes, which is not 2 rows of 8 codes of 4 bits", d, input(3, Ints({2})),
       {}},
      {"`packed` has 10 bytes, which is not 2 rows of 10 codes of 5 bits", d, meta(2, 1, 5), {}},
      {"`packed` has 10 bytes, which is not 2147483647 rows of 5 codes of 4 bits", d,
       input(2, Ints({1, 4, 0, kLarge, kLarge, 3})), {}},
      {"`scale` has 2 elements, but must have 1", d, meta(2, 2, 0), {}},
      {"`scale` has 2 elements, but must have 6", d, meta(2, 2, 2), {}},
      {"`scale` has 3 elements, but must have 2", d, input(1, Floats({1, 2, 3})), {}},
      // OcsQuantize and OcsFakeQuantize.
      {"`meta` has codes 8 to 7", q, meta(2, 1, 8), {}},
      {"`meta` has codes -129 to 7", q, meta(2, 1, -129), {}},
      {"`meta` has codes -8 to 128", q, meta(2, 2, 128), {}},
      {"and zero point -129", q, meta(2, 3, -129), {}},
      {"and zero point 128", q, meta(2, 3, 128), {}},
      {"`meta` has codes -32769 to 7", f, meta(3, 1, -32769), {}},
      {"`meta` has codes -8 to 32768", f, meta(3, 2, 32768), {}},
      {"and zero point 32768", f, meta(3, 3, 32768), {}},
      {"`scale` has 1 elements, but must have 4", f, input(2, Floats({1})), {}},
      // OcsFullyConnected.
      {"`meta` has 9 bits", c, meta(3, 1, 9), {}},
      {"`meta` has scaling 2, but must have 0 to 1", c, meta(3, 2, 2), {}},
      {"`meta` has activation 3", c, meta(3, 3, 3), {}},
      {"`meta` has activation -1", c, meta(3, 3, -1), {}},
      {"`meta` has 0 outputs", c, meta(3, 4, 0), {}},
      {"`meta` has 2 outputs and -4 channels", c, meta(3, 5, -4), {}},
      {"`packed` has 4 bytes, which is not 2147483647 rows", c,
       [=](Spec s) {
         meta(3, 4, kLarge)(s);
         meta(3, 2, 0)(s);
         s->inputs[2] = Floats({1});
       },
       {}},
      {"`scale` has 2 elements, but must have 1", c, meta(3, 2, 0), {}},
      {"`bias` has 1 elements, but must have 2", c, input(4, Floats({1})), {}},
      {"`copies` has channel 4, but there are 4", c, input(5, Ints({4})), {}},
      {"`packed` has 4 bytes, which is not 2 rows of 6 codes of 3 bits", c,
       input(5, Ints({3, 3})), {}},
  };
}

void MalformedNodesAreRefused() {
  const DelegatePtr delegate = MakeDelegate();
  for (const Malformed& malformed : MalformedNodes()) {
    MockRuntime runtime;
    const AddedNode valid = AddNode(&runtime, Dequantize());
    NodeSpec spec = malformed.spec;
    if (malformed.damage) malformed.damage(&spec);
    const AddedNode node = AddNode(&runtime, spec);
    if (malformed.damage_runtime) malformed.damage_runtime(&runtime, node);
    const bool refused = runtime.Apply(delegate.get()) == tflite::kError &&
                         runtime.partition_count() == 0 &&
                         runtime.errors.find(malformed.message) != std::string::npos &&
                         runtime.errors.find(spec.name + " (operator 1)") == 0;
    if (!refused) {
      std::fprintf(stderr, "expected: %s\n     got: %s\n", malformed.message,
                   runtime.errors.c_str());
      ++failures;
    }
    CHECK(runtime.tensor(valid.output).data == nullptr);
  }
}

// What is only known when sizes are: the input.
void MalformedInputsAreRefused() {
  NodeSpec eight_copies = Quantize();
  eight_copies.inputs[1] = Floats({1});
  eight_copies.inputs[3] = Ints({0, 0, 0, 0, 0, 0, 0, 0});
  const struct {
    const char* message;
    NodeSpec spec;
    std::vector<int32_t> dims;
    int64_t bytes;  // -1: those of `dims`
  } cases[] = {
      {"`x` must have one dimension or more", Quantize(), {}, -1},
      {"`x` must have one dimension or more, and one channel", Quantize(), {2, 0}, 0},
      {"`x` has a dimension of -2", Quantize(), {-2, 3}, 24},
      {"`x` has 25 bytes", Quantize(), {2, 3}, 25},
      {"`x` has 0 bytes", Quantize(), {INT32_MAX, INT32_MAX, INT32_MAX, 3}, 0},
      {"`inv_scale` has 4 elements, but must have 1 or 5", Quantize(), {2, 4}, -1},
      {"`inv_scale` has 4 elements, but must have 1 or 2", FakeQuantize(), {2, 1}, -1},
      {"`x` has 3 channels, but must have 4", FullyConnected(), {2, 3}, -1},
      {"`x` is too large", eight_copies, {1 << 30, 1 << 30, 2, 1}, -1},
  };
  const DelegatePtr delegate = MakeDelegate();
  for (const auto& c : cases) {
    MockRuntime runtime;
    const AddedNode node = AddNode(&runtime, c.spec);
    runtime.graph_outputs = {node.output};
    CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
    CHECK(runtime.Allocate() == tflite::kOk);
    Tensor& x = runtime.tensor(node.inputs[0]);
    std::free(x.dims);
    x.dims = NewIntArray(c.dims);
    if (c.bytes >= 0) {
      x.bytes = static_cast<size_t>(c.bytes);
    } else {
      x.bytes = sizeof(float);
      for (const int32_t size : c.dims) x.bytes *= static_cast<size_t>(size);
    }
    for (const bool invoke : {true, false}) {
      runtime.errors.clear();
      CHECK((invoke ? runtime.Invoke() : runtime.Allocate()) == tflite::kError);
      CHECK(runtime.errors.find(c.message) != std::string::npos);
    }
  }
  // One scale for all channels fits any `x`, but copies do not.
  MockRuntime runtime;
  NodeSpec spec = Quantize();
  spec.inputs[1] = Floats({1});
  const AddedNode node = AddNode(&runtime, spec);
  CHECK(runtime.Apply(delegate.get()) == tflite::kOk);
  runtime.SetDims(node.inputs[0], {2, 1});
  CHECK(runtime.Allocate() == tflite::kError);
  CHECK(runtime.errors.find("`copies` has channel 1, but there are 1") != std::string::npos);
}

int Main() {
  FoldsWeights();
  Runs(Quantize(), kX, kQuantized);
  Runs(FakeQuantize(), kX, kFakeQuantized);
  Runs(FullyConnected(), kConnectedX, kConnected);
  Runs(WithoutCopiesAndBias(), kConnectedX, kConnectedPlainly);
  RunsChains(false);
  RunsChains(true);
  FoldedWeightsAreRead();
  OtherOperatorsAreLeft();
  GraphsMustBeInOrder();
  FoldingFailsHalfWay();
  MemoryOfTheApplicationIsKept();
  LargeTensorsAreRefused();
  ExceptionsBecomeErrors();
  ResizedAndNotAllocated();
  OptionsAreRefused();
  ThreadsShareADelegate();
  MalformedNodesAreRefused();
  MalformedInputsAreRefused();
  if (failures == 0) std::puts("ok");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ocs::testing

int main() { return ocs::testing::Main(); }
