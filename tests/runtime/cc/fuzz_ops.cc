// Random nodes, mostly malformed, through the whole life of a delegate in a mock runtime. Memory is
// exact, so sanitizers see each access beyond it.
//
// A target of libFuzzer: clang++ -fsanitize=fuzzer,address,undefined. With OCS_FUZZ_MAIN it has a
// main of its own, which any compiler builds: `fuzz_ops SECONDS SEED`.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "mock_runtime.h"
#include "test_nodes.h"

namespace ocs::testing {
namespace {

// Choices, taken from bytes; 0 when they are used up.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  bool empty() const { return data_ == end_; }
  uint8_t Byte() { return empty() ? 0 : *data_++; }
  int Up(int most) { return Byte() % (most + 1); }  // 0 .. most < 256
  bool Chance(int one_in) { return Up(one_in - 1) == 1; }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Up(static_cast<int>(values.size()) - 1)];
  }

  // Numbers that programs stumble over.
  int32_t Number() {
    switch (Up(3)) {
      case 0: return Up(16) - 4;
      case 1: return Pick({INT32_MAX, INT32_MIN, INT32_MAX - 1, 1 << 30, 1 << 16, 46341, -1, 256});
      case 2: return Byte() - 128;
      default: {
        uint32_t bits = 0;
        for (int i = 0; i < 4; ++i) bits = bits << 8 | Byte();
        return static_cast<int32_t>(bits);
      }
    }
  }

  std::vector<uint8_t> Bytes(size_t count) {
    std::vector<uint8_t> bytes(count);
    for (auto& byte : bytes) byte = Byte();
    return bytes;
  }

  // Any bits: infinities, NaN and subnormal numbers among them.
  TensorSpec AnyFloats(size_t count) {
    return {tflite::kFloat32, {static_cast<int32_t>(count)}, Bytes(4 * count)};
  }

  TensorSpec Copies(int count, int channels) {
    if (count == 0) return Missing();
    std::vector<int32_t> copies;
    for (int i = 0; i < count; ++i) copies.push_back(Up(channels - 1));
    return Ints(copies);
  }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

TensorSpec AnyCodes(Choices* choices, int bits, int rows, int columns) {
  const size_t bytes = static_cast<size_t>(rows) * ((columns * bits + 7) / 8);
  return Constant(tflite::kUInt8, choices->Bytes(bytes));
}

NodeSpec ValidDequantize(Choices* c) {
  const int bits = 2 + c->Up(6), scaling = c->Up(2);
  const int rows = 1 + c->Up(4), pixels = 1 + c->Up(5), channels = 1 + c->Up(9);
  const int copies = c->Up(5);
  const int scales = scaling == 0 ? 1 : scaling == 1 ? rows : pixels * channels;
  return {"OcsDequantize",
          {AnyCodes(c, bits, rows, pixels * (channels + copies)), c->AnyFloats(scales),
           Ints({1, bits, scaling, rows, rows, 1, pixels, channels}),
           c->Copies(copies, channels)},
          Computed(tflite::kFloat32, {rows, 1, pixels, channels})};
}

NodeSpec ValidFullyConnected(Choices* c) {
  const int bits = 2 + c->Up(6), scaling = c->Up(1), activation = c->Up(2);
  const int rows = 1 + c->Up(5), channels = 1 + c->Up(70), batch = c->Up(5);
  const int copies = c->Up(5);
  return {"OcsFullyConnected",
          {Computed(tflite::kFloat32, {batch, channels}),
           AnyCodes(c, bits, rows, channels + copies), c->AnyFloats(scaling == 0 ? 1 : rows),
           Ints({1, bits, scaling, activation, rows, channels}),
           c->Chance(2) ? Missing() : c->AnyFloats(rows), c->Copies(copies, channels)},
          Computed(tflite::kFloat32, {batch, rows})};
}

NodeSpec ValidRounding(Choices* c, bool fake) {
  const int channels = 1 + c->Up(70), batch = c->Up(5), copies = c->Up(5);
  const int scales = c->Chance(2) ? 1 : channels + copies;
  const int low = -c->Up(128), high = c->Up(127), zero_point = c->Up(20) - 10;
  NodeSpec spec = {fake ? "OcsFakeQuantize" : "OcsQuantize",
                   {Computed(tflite::kFloat32, {batch, channels}), c->AnyFloats(scales)},
                   Computed(fake ? tflite::kFloat32 : tflite::kInt8, {batch, channels + copies})};
  if (fake) spec.inputs.push_back(c->AnyFloats(scales));
  spec.inputs.push_back(Ints({1, low, high, zero_point}));
  spec.inputs.push_back(c->Copies(copies, channels));
  return spec;
}

NodeSpec ValidNode(Choices* c) {
  switch (c->Up(3)) {
    case 0: return ValidDequantize(c);
    case 1: return ValidFullyConnected(c);
    default: return ValidRounding(c, c->Chance(2));
  }
}

void MutateTensor(Choices* c, TensorSpec* tensor) {
  const size_t at = c->Byte();
  switch (c->Up(7)) {
    case 0: tensor->type = c->Up(12); break;
    case 1: tensor->dims.push_back(c->Number()); break;
    case 2:
      if (!tensor->dims.empty()) tensor->dims[at % tensor->dims.size()] = c->Number();
      break;
    case 3: tensor->dims.resize(c->Up(3)); break;
    case 4: tensor->constant = !tensor->constant; break;
    case 5: tensor->missing = !tensor->missing; break;
    case 6: tensor->data.resize(c->Up(64)); break;
    default:  // a consistent constant of another size
      tensor->dims = {c->Up(12)};
      tensor->data.resize(tensor->dims[0] * SizeOf(tensor->type));
  }
}

// Also changes values of int32 constants: `meta` and `copies`.
void MutateData(Choices* c, TensorSpec* tensor) {
  if (tensor->data.empty()) return;
  const size_t words = tensor->data.size() / 4;
  const size_t at = c->Byte();
  if (tensor->type == tflite::kInt32 && words > 0) {
    const int32_t number = c->Number();
    std::memcpy(&tensor->data[at % words * 4], &number, sizeof(number));
  } else {
    tensor->data[at % tensor->data.size()] = c->Byte();
  }
}

void MutateNode(Choices* c, NodeSpec* node) {
  if (node->inputs.empty()) return;
  TensorSpec& input = node->inputs[c->Byte() % node->inputs.size()];
  switch (c->Up(7)) {
    case 0: node->inputs.pop_back(); break;
    case 1: node->inputs.push_back(TensorSpec(input)); break;
    case 2: std::swap(input, node->inputs[c->Byte() % node->inputs.size()]); break;
    case 3: MutateTensor(c, &node->output); break;
    case 4: MutateTensor(c, &input); break;
    default: MutateData(c, &input);
  }
}

// What a file can say of tensors that exist already.
void MutateGraph(Choices* c, MockRuntime* runtime, const AddedNode& node) {
  tflite::IntArray* inputs = runtime->node(node.node).inputs;
  tflite::IntArray* outputs = runtime->node(node.node).outputs;
  switch (c->Up(4)) {
    case 0:
      if (inputs->size > 0) inputs->data[c->Byte() % inputs->size] = c->Number();
      break;
    case 1:
      if (inputs->size > 0) inputs->data[c->Byte() % inputs->size] = c->Up(12);
      break;
    case 2: outputs->data[0] = c->Chance(2) ? c->Number() : c->Up(12); break;
    case 3: outputs->size = 0; break;
    default:
      if (node.output >= 0) runtime->tensor(node.output).is_variable = true;
  }
}

void Require(bool condition, const char* what, const MockRuntime& runtime) {
  if (condition) return;
  std::fprintf(stderr, "%s: %s\n", what, runtime.errors.c_str());
  std::abort();
}

// Checks that a failure has a message, and a success none.
bool Check(Status status, MockRuntime* runtime) {
  Require((status == tflite::kOk) == runtime->errors.empty(), "status without its message",
          *runtime);
  runtime->errors.clear();
  return status == tflite::kOk;
}

void FillInputs(Choices* c, MockRuntime* runtime, const std::vector<int>& inputs) {
  for (const int input : inputs) {
    Tensor& tensor = runtime->tensor(input);
    if (tensor.data == nullptr || tensor.allocation_type != tflite::kArenaRw) continue;
    const auto bytes = c->Bytes(tensor.bytes);
    if (!bytes.empty()) std::memcpy(tensor.data, bytes.data(), bytes.size());
  }
}

struct Delegates {
  Delegates() : delegate(tflite_plugin_create_delegate(nullptr, nullptr, 0, nullptr)) {}
  ~Delegates() { tflite_plugin_destroy_delegate(delegate); }
  Delegate* const delegate;
};

// Returns whether the graph ran.
bool RunOne(const uint8_t* data, size_t size) {
  static const Delegates delegates;
  Choices c(data, size);
  MockRuntime runtime;
  runtime.separate_partitions = c.Chance(2);
  const int node_count = 1 + c.Up(2);
  std::vector<AddedNode> nodes;
  std::vector<int> inputs;
  for (int i = 0; i < node_count; ++i) {
    NodeSpec spec = ValidNode(&c);
    for (int mutations = c.Up(3); mutations > 0; --mutations) MutateNode(&c, &spec);
    const bool chained = i > 0 && c.Chance(2);
    nodes.push_back(AddNode(&runtime, spec, chained ? nodes.back().output : -1, c.Up(3)));
    if (c.Chance(2)) runtime.graph_outputs.push_back(nodes.back().output);
    const auto& added = nodes.back().inputs;
    if (!chained && !added.empty() && added[0] >= 0) inputs.push_back(added[0]);
  }
  if (c.Chance(4)) MutateGraph(&c, &runtime, nodes[c.Up(node_count - 1)]);

  bool ran = false;
  for (int times = 0; times < 2; ++times) {
    if (runtime.Apply(delegates.delegate) != tflite::kOk) {
      Require(!runtime.errors.empty(), "no message", runtime);
      return ran;
    }
    runtime.errors.clear();
    for (int batches = 0; batches < 2; ++batches) {
      const Status status = runtime.Allocate();
      if (status == tflite::kOk) {
        runtime.errors.clear();
        FillInputs(&c, &runtime, inputs);
        ran |= Check(runtime.Invoke(), &runtime);
      }
      for (const int input : inputs) {
        if (runtime.tensor(input).allocation_type != tflite::kArenaRw) continue;
        std::vector<int32_t> dims = Values(*runtime.tensor(input).dims);
        if (dims.empty() || c.Chance(3)) dims.push_back(c.Number());
        dims[c.Byte() % dims.size()] = c.Chance(3) ? c.Number() : c.Up(7);
        runtime.SetDims(input, dims);
      }
      runtime.errors.clear();
      // Without a new allocation: most of all, it must not be taken for one.
      if (c.Chance(3)) Check(runtime.Invoke(), &runtime);
    }
    runtime.Undo();
    runtime.errors.clear();
  }
  return ran;
}

}  // namespace
}  // namespace ocs::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ocs::testing::RunOne(data, size);
  return 0;
}

#ifdef OCS_FUZZ_MAIN

#include <chrono>
#include <random>

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: fuzz_ops SECONDS SEED\n");
    return 2;
  }
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::duration<double>(std::atof(arguments[1]));
  std::mt19937_64 random(std::strtoull(arguments[2], nullptr, 10));
  long runs = 0, complete = 0;
  do {
    std::vector<uint8_t> bytes(random() % 1024);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(random());
    complete += ocs::testing::RunOne(bytes.data(), bytes.size());
    ++runs;
  } while (std::chrono::steady_clock::now() < end);
  std::printf("%ld runs, %ld of them to the end\n", runs, complete);
  // Were all nodes refused, nothing but the checks would have been tried.
  return complete > 0 ? 0 : 1;
}

#endif
