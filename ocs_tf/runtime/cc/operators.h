// The operators of the packed format (docs/packed.md), as plain numbers: parse.cc reads them from
// the nodes of a file, run.cc runs them.
//
// A file is not trusted. Of all that is in these structs parse.cc has checked, and run.cc assumes:
//   - Indices of tensors are within the graph. The output is a tensor that is computed, of the type
//     that the operator writes, and not its input.
//   - `packed` is of kMinBits .. kMaxBits, of one row and one column or more, and has exactly
//     rows * RowBytes(bits, columns) bytes. It is not copied: the file's memory is to outlive it.
//   - Other arrays are copies, since a file may align them badly, of the sizes that are given here.
//   - `copies` are channels of the input: each in 0 .. channels - 1.
//   - `low`, `high` and `zero_point` are as Rounding in microkernels.h wants them.
//   - Sizes are products that fit into size_t, and so do the bytes of what has them.
// RowSizes are of an input that the operator can run with. Only with them are `copies`, `inv_scale`
// and `scale` of a RoundOp known to suit its channels, of which the file says nothing.

#ifndef OCS_TF_RUNTIME_OPERATORS_H_
#define OCS_TF_RUNTIME_OPERATORS_H_

#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "microkernels.h"

namespace ocs {

// OcsDequantize: a constant once it has run.
struct DequantizeOp {
  PackedCodes packed = {};  // columns = pixels * (channels + copies)
  size_t pixels = 0;
  size_t channels = 0;
  Scaling scaling = Scaling::kTensor;
  std::vector<float> scale;  // [1], [rows] or [pixels * channels], as `scaling` says
  std::vector<int32_t> copies;
  std::vector<int32_t> shape;  // of the output, [..., channels]
  size_t elements = 0;         // their product, rows * pixels * channels
  int output = 0;              // index of a tensor
};

// OcsQuantize, and if `fake` OcsFakeQuantize: int8 or float32 [rows, channels + copies].
struct RoundOp {
  bool fake = false;
  std::vector<float> inv_scale;  // [1] or [channels + copies]
  std::vector<float> scale;      // likewise, if `fake`
  std::vector<int32_t> copies;
  int32_t low = 0;  // as those of Rounding
  int32_t high = 0;
  int32_t zero_point = 0;
};

// OcsFullyConnected: float32 [rows, packed.rows].
struct FullyConnectedOp {
  size_t channels = 0;
  PackedCodes packed = {};   // columns = channels + copies
  std::vector<float> scale;  // [packed.rows]
  std::vector<float> bias;   // [packed.rows]
  std::vector<int32_t> copies;
  float low = 0;  // of the activation function
  float high = 0;
};

// An operator on each row of its input, float32 [..., channels].
struct RowOp {
  int x = 0;  // indices of tensors
  int output = 0;
  std::variant<RoundOp, FullyConnectedOp> op;
};

// What a RowOp reads and writes for an input of some shape, which it can run with.
struct RowSizes {
  size_t rows = 0;
  size_t channels = 0;
  size_t output_channels = 0;
  size_t output_bytes = 0;
  size_t scratch = 0;  // floats of working memory
};

}  // namespace ocs

#endif  // OCS_TF_RUNTIME_OPERATORS_H_
