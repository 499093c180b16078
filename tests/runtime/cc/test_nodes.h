// Nodes of the packed format for tests: as plain numbers, and as they stand in a graph.

#ifndef OCS_TF_TESTS_RUNTIME_TEST_NODES_H_
#define OCS_TF_TESTS_RUNTIME_TEST_NODES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "mock_runtime.h"

namespace ocs::testing {

// An input or the output of a node. Constants have data.
struct TensorSpec {
  int32_t type = tflite::kFloat32;
  std::vector<int32_t> dims;
  std::vector<uint8_t> data;
  bool constant = true;
  bool missing = false;  // an optional input, left out
};

struct NodeSpec {
  std::string name;
  std::vector<TensorSpec> inputs;
  TensorSpec output;
};

template <typename T>
TensorSpec Constant(int32_t type, const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  return {type, {static_cast<int32_t>(values.size())}, {bytes, bytes + values.size() * sizeof(T)}};
}
inline TensorSpec Floats(const std::vector<float>& values) {
  return Constant(tflite::kFloat32, values);
}
inline TensorSpec Ints(const std::vector<int32_t>& values) {
  return Constant(tflite::kInt32, values);
}
inline TensorSpec Computed(int32_t type, const std::vector<int32_t>& dims) {
  return {type, dims, {}, false};
}
inline TensorSpec Missing() {
  TensorSpec spec;
  spec.missing = true;
  return spec;
}

// Rows of codes, packed bit by bit.
inline TensorSpec Packed(const std::vector<std::vector<int>>& rows, int bits) {
  std::vector<uint8_t> bytes;
  for (const auto& row : rows) {
    const size_t start = bytes.size();
    bytes.resize(start + (row.size() * bits + 7) / 8);
    for (size_t bit = 0; bit < row.size() * bits; ++bit) {
      const int value = row[bit / bits] >> (bit % bits) & 1;
      bytes[start + bit / 8] |= static_cast<uint8_t>(value << (bit % 8));
    }
  }
  return Constant(tflite::kUInt8, bytes);
}

// Indices in a graph.
struct AddedNode {
  std::vector<int32_t> inputs;
  int output;
  int node;
};

inline int AddTensor(MockRuntime* runtime, const TensorSpec& spec, size_t misalign = 0) {
  if (spec.missing) return tflite::kOptionalTensor;
  if (!spec.constant) return runtime->AddTensor(spec.type, spec.dims);
  return runtime->AddConstant(spec.type, spec.dims, spec.data.data(), spec.data.size(), misalign);
}

// Adds the tensors of a node and the node. If `x` >= 0, it is the node's first input.
inline AddedNode AddNode(MockRuntime* runtime, const NodeSpec& spec, int x = -1,
                         size_t misalign = 0) {
  AddedNode added;
  for (size_t i = 0; i < spec.inputs.size(); ++i) {
    added.inputs.push_back(i == 0 && x >= 0 ? x : AddTensor(runtime, spec.inputs[i], misalign));
  }
  added.output = AddTensor(runtime, spec.output);
  added.node = runtime->AddNode(spec.name, added.inputs, {added.output});
  return added;
}

}  // namespace ocs::testing

#endif  // OCS_TF_TESTS_RUNTIME_TEST_NODES_H_
