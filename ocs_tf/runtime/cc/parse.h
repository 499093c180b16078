// Reading the operators of the packed format from a file that is not trusted: every number of a
// node is checked before it is used. operators.h says what holds for the results.

#ifndef OCS_TF_RUNTIME_PARSE_H_
#define OCS_TF_RUNTIME_PARSE_H_

#include <cstddef>
#include <string_view>
#include <vector>

#include "operators.h"
#include "tflite_abi.h"

namespace ocs {

// The custom names of the operators.
constexpr std::string_view kDequantize = "OcsDequantize";
constexpr std::string_view kFullyConnected = "OcsFullyConnected";
constexpr std::string_view kQuantize = "OcsQuantize";
constexpr std::string_view kFakeQuantize = "OcsFakeQuantize";

// Whether it is one of these.
bool IsOperator(std::string_view custom_name);

// What is wrong, for a reader.
struct Error {
  char text[256] = "";

  // As printf. Returns false: `return error->Set("...");`.
#if defined(__GNUC__)
  __attribute__((format(printf, 2, 3)))
#endif
  bool Set(const char* format, ...);
};

// A node of a file, and the tensors of its graph.
struct NodeView {
  const char* name;  // one of those above, or nullptr: it is not ours
  const tflite::IntArray* inputs;
  const tflite::IntArray* outputs;
  const tflite::Tensor* tensors;
  size_t tensors_size;
};

// Whether each tensor is made before it is read. Runtimes partition a graph with a circle to death.
bool CheckOrder(const std::vector<NodeView>& nodes, Error* error);

// Reads a node of OcsDequantize.
bool ParseDequantize(const NodeView& node, DequantizeOp* op, Error* error);

// Reads a node of any other operator.
bool ParseRowOp(const NodeView& node, RowOp* op, Error* error);

// Checks the type, the dimensions and the bytes of `x`, and whether `op` can run with them.
bool ReadSizes(const RowOp& op, const tflite::Tensor& x, RowSizes* sizes, Error* error);

}  // namespace ocs

#endif  // OCS_TF_RUNTIME_PARSE_H_
