// The operators of the packed format (docs/packed.md): reading them from a file, and running them.
//
// A file is not trusted. The parsers check every number of a node before it is used; what they
// return can be run as it is. All constants but the codes are copied: a file may align them badly.

#ifndef OCS_TF_KERNELS_OPS_H_
#define OCS_TF_KERNELS_OPS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels.h"
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
  const tflite::IntArray* inputs;
  const tflite::IntArray* outputs;
  const tflite::Tensor* tensors;
  size_t tensors_size;
};

// OcsDequantize: a constant once it has run.
struct DequantizeOp {
  PackedCodes packed = {};
  size_t pixels = 0;
  size_t channels = 0;
  Scaling scaling = Scaling::kTensor;
  std::vector<float> scale;
  std::vector<int32_t> copies;
  std::vector<int32_t> shape;  // of the output
  size_t elements = 0;         // their product; its bytes fit into size_t
  int output = 0;              // index of a tensor

  void Run(float* out) const;  // [elements]
};

bool ParseDequantize(const NodeView& node, DequantizeOp* op, Error* error);

// An operator on each row of `x`: float32 [..., channels] becomes [..., output channels].
class RowOp {
 public:
  RowOp(int x, int output, tflite::Type output_type)
      : x(x), output(output), output_type(output_type) {}
  virtual ~RowOp() = default;

  // Whether it can run with this many channels, and how many it then makes.
  virtual bool OutputChannels(size_t channels, size_t* output_channels, Error* error) const = 0;

  // Floats of working memory per row.
  virtual size_t Scratch(size_t channels) const = 0;

  // x: [rows, channels]; scratch: [rows, Scratch(channels)]; out: [rows, output channels].
  virtual void Run(const float* x, size_t rows, size_t channels, float* scratch,
                   void* out) const = 0;

  // Indices of tensors.
  const int x;
  const int output;
  const tflite::Type output_type;
};

// Reads a node of any operator but OcsDequantize; nullptr after an error.
std::unique_ptr<RowOp> ParseRowOp(std::string_view custom_name, const NodeView& node,
                                  Error* error);

// The activation [rows, channels] that a RowOp reads.
struct Activation {
  size_t rows;
  size_t channels;
};

// Checks the type, the dimensions and the bytes of `x`.
bool ReadActivation(const tflite::Tensor& x, Activation* activation, Error* error);

// a * b, unless that does not fit.
bool Multiply(size_t a, size_t b, size_t* product);

}  // namespace ocs

#endif  // OCS_TF_KERNELS_OPS_H_
