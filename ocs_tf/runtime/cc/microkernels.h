// The microkernels: the arithmetic of the packed format (docs/packed.md), in one implementation per
// instruction set. A *kernel*, here as elsewhere, is a layer's weight tensor.
//
// All implementations of a function give the same bits, whatever the shape and the alignment. None
// reads or writes outside of the arrays it is given, and none allocates.

#ifndef OCS_TF_RUNTIME_MICROKERNELS_H_
#define OCS_TF_RUNTIME_MICROKERNELS_H_

#include <cstddef>
#include <cstdint>

namespace ocs {

constexpr int kMinBits = 2;
constexpr int kMaxBits = 8;

// Codes of activations, less the zero point, are in -kMaxCode .. kMaxCode: 16 bits, any zero point.
constexpr int32_t kMaxCode = 65535;

// What a scale belongs to.
enum class Scaling : int32_t {
  kTensor = 0,  // one for all codes
  kRow = 1,     // one for each row: output channels of Dense and Conv2D
  kColumn = 2,  // one for each column: output channels of DepthwiseConv2D
};

// Bytes of one row of `count` codes; rows are padded with zero bits to whole bytes.
constexpr size_t RowBytes(int bits, size_t count) {
  return count / 8 * static_cast<size_t>(bits) + (count % 8 * static_cast<size_t>(bits) + 7) / 8;
}

// Codes of `bits` bits each, in two's complement, the first in the lowest bits of the first byte.
struct PackedCodes {
  const uint8_t* data;  // [rows, RowBytes(bits, columns)], of any alignment
  int bits;             // kMinBits .. kMaxBits
  size_t rows;
  size_t columns;
};

// How an activation [rows, channels] is rounded. Copies of channels are appended to each row.
struct Rounding {
  const float* inv_scale;   // [1], or [channels + copies] if `per_channel`
  const float* scale;       // likewise; not used by `quantize`
  bool per_channel;
  int32_t low;              // smallest code less the zero point, within kMaxCode
  int32_t high;             // largest code less the zero point, within kMaxCode, not below `low`
  int32_t zero_point;       // an int8; not used by `fake_quantize`
  const int32_t* copies;    // [copy_count], each in 0 .. channels - 1: the channel that is copied
  size_t copy_count;
};

// One implementation of all of them.
struct Microkernels {
  const char* name;  // "plain", "avx2", "avx512" or "neon"

  // Codes [rows, columns], within the range of `bits`, to rows of RowBytes(bits, columns) bytes.
  void (*pack)(const int8_t* codes, int bits, size_t rows, size_t columns, uint8_t* packed);

  // Packed codes to int8 [rows, columns].
  void (*unpack)(const PackedCodes& packed, int8_t* codes);

  // out[r, c] = codes[r, c] * scale, for the first `columns` columns; float32 [rows, columns].
  // `scale` is [1], [rows] or [columns], as `scaling` says.
  void (*dequantize)(const PackedCodes& packed, size_t columns, const float* scale,
                     Scaling scaling, float* out);

  // out = clamp(round_half_even(x * inv_scale), low, high) + zero_point, int8; NaN counts as 0.
  // x: float32 [rows, channels]; out: [rows, channels + copy_count].
  void (*quantize)(const float* x, size_t rows, size_t channels, const Rounding& rounding,
                   int8_t* out);

  // out = clamp(round_half_even(x * inv_scale), low, high) * scale, float32; NaN counts as 0.
  void (*fake_quantize)(const float* x, size_t rows, size_t channels, const Rounding& rounding,
                        float* out);

  // out[b, r] = sum over c of codes[r, c] * x[b, c], float32 [batch, rows], neither scaled nor
  // biased. The order of the additions is fixed: see docs/packed.md.
  void (*multiply)(const PackedCodes& packed, const float* x, size_t batch, float* out);
};

// The fastest implementation that this processor runs; chosen once.
const Microkernels& BestMicrokernels();

// The implementation of this name, or nullptr if this processor or build lacks it.
const Microkernels* FindMicrokernels(const char* name);

// Copies of split channels, and where they are in a row of packed codes: behind the codes of the
// unexpanded kernel, [pixels, channels], the copies' [pixels, copies].
struct MergedKernel {
  PackedCodes packed;      // columns = pixels * (channels + copy_count)
  size_t pixels;           // kernel height times width
  size_t channels;         // input channels, without copies
  const int32_t* copies;   // [copy_count], each in 0 .. channels - 1
  size_t copy_count;
  const float* scale;      // [1], [rows] or [pixels * channels], as `scaling` says
  Scaling scaling;
};

// The effective kernel float32 [rows, pixels * channels]: codes of copies are added, as integers,
// to those of the channel they copy; the sum is multiplied once.
void DequantizeMerged(const Microkernels& microkernels, const MergedKernel& kernel, float* out);

}  // namespace ocs

#endif  // OCS_TF_RUNTIME_MICROKERNELS_H_
