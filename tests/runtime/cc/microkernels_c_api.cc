// The microkernels for callers by name, such as Python's ctypes: a library for tests and benchmarks,
// of these functions and those of microkernels.h.
//
// `instruction_set` is one of those that `ocs_instruction_sets` names. Arguments are those of
// microkernels.h. Functions return 0, or 1 if an argument is out of range, having written nothing;
// sizes of arrays and the values of `copies` cannot be checked here.

#include "exports.h"
#include "instruction_sets.h"

namespace {

using ocs::FindMicrokernels;
using ocs::Microkernels;
using ocs::Rounding;
using ocs::Scaling;

constexpr int32_t kOk = 0;
constexpr int32_t kRefused = 1;

bool ValidBits(int32_t bits) { return ocs::kMinBits <= bits && bits <= ocs::kMaxBits; }

bool ValidScaling(int32_t scaling) {
  return scaling >= static_cast<int32_t>(Scaling::kTensor) &&
         scaling <= static_cast<int32_t>(Scaling::kColumn);
}

bool IsInt8(int64_t value) { return -128 <= value && value <= 127; }

}  // namespace

OCS_EXPORT int32_t ocs_pack(const char* instruction_set, const int8_t* codes, int32_t bits,
                            size_t rows, size_t columns, uint8_t* packed) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || !ValidBits(bits)) return kRefused;
  set->pack(codes, bits, rows, columns, packed);
  return kOk;
}

OCS_EXPORT int32_t ocs_unpack(const char* instruction_set, const uint8_t* packed, int32_t bits,
                              size_t rows, size_t columns, int8_t* codes) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || !ValidBits(bits)) return kRefused;
  set->unpack({packed, bits, rows, columns}, codes);
  return kOk;
}

// Of `packed_columns` columns, the first `columns`.
OCS_EXPORT int32_t ocs_dequantize(const char* instruction_set, const uint8_t* packed,
                                  int32_t bits, size_t rows, size_t packed_columns,
                                  size_t columns, const float* scale, int32_t scaling,
                                  float* out) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || !ValidBits(bits) || !ValidScaling(scaling) || columns > packed_columns) {
    return kRefused;
  }
  set->dequantize({packed, bits, rows, packed_columns}, columns, scale,
                  static_cast<Scaling>(scaling), out);
  return kOk;
}

OCS_EXPORT int32_t ocs_dequantize_merged(const char* instruction_set, const uint8_t* packed,
                                         int32_t bits, size_t rows, size_t pixels,
                                         size_t channels, const int32_t* copies,
                                         size_t copy_count, const float* scale, int32_t scaling,
                                         float* out) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || !ValidBits(bits) || !ValidScaling(scaling)) return kRefused;
  const size_t packed_columns = pixels * (channels + copy_count);
  ocs::DequantizeMerged(*set,
                        {{packed, bits, rows, packed_columns}, pixels, channels, copies,
                         copy_count, scale, static_cast<Scaling>(scaling)},
                        out);
  return kOk;
}

OCS_EXPORT int32_t ocs_quantize(const char* instruction_set, const float* x, size_t rows,
                                size_t channels, const float* inv_scale, int32_t per_channel,
                                int32_t low, int32_t high, int32_t zero_point,
                                const int32_t* copies, size_t copy_count, int8_t* out) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || low > high || !IsInt8(zero_point) || !IsInt8(int64_t{low} + zero_point) ||
      !IsInt8(int64_t{high} + zero_point)) {
    return kRefused;
  }
  const Rounding rounding = {inv_scale, nullptr,    per_channel != 0, low,
                             high,      zero_point, copies,           copy_count};
  set->quantize(x, rows, channels, rounding, out);
  return kOk;
}

OCS_EXPORT int32_t ocs_fake_quantize(const char* instruction_set, const float* x, size_t rows,
                                     size_t channels, const float* inv_scale, const float* scale,
                                     int32_t per_channel, int32_t low, int32_t high,
                                     const int32_t* copies, size_t copy_count, float* out) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || low > high || low < -ocs::kMaxCode || high > ocs::kMaxCode) {
    return kRefused;
  }
  const Rounding rounding = {inv_scale, scale, per_channel != 0, low,
                             high,      0,     copies,           copy_count};
  set->fake_quantize(x, rows, channels, rounding, out);
  return kOk;
}

OCS_EXPORT int32_t ocs_multiply(const char* instruction_set, const uint8_t* packed, int32_t bits,
                                size_t rows, size_t columns, const float* x, size_t batch,
                                float* out) {
  const Microkernels* set = FindMicrokernels(instruction_set);
  if (set == nullptr || !ValidBits(bits)) return kRefused;
  set->multiply({packed, bits, rows, columns}, x, batch, out);
  return kOk;
}
