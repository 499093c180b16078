#include "c_api.h"

#include <string>

#include "instruction_sets.h"

namespace {

using ocs::FindKernels;
using ocs::Kernels;
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

int32_t ocs_library_version() { return ocs::kLibraryVersion; }

const char* ocs_instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* kernels : {ocs::PlainKernels(), ocs::NeonKernels(), ocs::Avx2Kernels(),
                                   ocs::Avx512Kernels()}) {
      if (kernels == nullptr) continue;
      if (!joined.empty()) joined += ' ';
      joined += kernels->name;
    }
    return joined;
  }();
  return names.c_str();
}

int32_t ocs_pack(const char* instruction_set, const int8_t* codes, int32_t bits, size_t rows,
                 size_t columns, uint8_t* packed) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || !ValidBits(bits)) return kRefused;
  kernels->pack(codes, bits, rows, columns, packed);
  return kOk;
}

int32_t ocs_unpack(const char* instruction_set, const uint8_t* packed, int32_t bits, size_t rows,
                   size_t columns, int8_t* codes) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || !ValidBits(bits)) return kRefused;
  kernels->unpack({packed, bits, rows, columns}, codes);
  return kOk;
}

int32_t ocs_dequantize(const char* instruction_set, const uint8_t* packed, int32_t bits,
                       size_t rows, size_t packed_columns, size_t columns, const float* scale,
                       int32_t scaling, float* out) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || !ValidBits(bits) || !ValidScaling(scaling) ||
      columns > packed_columns) {
    return kRefused;
  }
  kernels->dequantize({packed, bits, rows, packed_columns}, columns, scale,
                      static_cast<Scaling>(scaling), out);
  return kOk;
}

int32_t ocs_dequantize_merged(const char* instruction_set, const uint8_t* packed, int32_t bits,
                              size_t rows, size_t pixels, size_t channels, const int32_t* copies,
                              size_t copy_count, const float* scale, int32_t scaling,
                              float* out) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || !ValidBits(bits) || !ValidScaling(scaling)) return kRefused;
  const size_t packed_columns = pixels * (channels + copy_count);
  ocs::DequantizeMerged(*kernels,
                        {{packed, bits, rows, packed_columns}, pixels, channels, copies,
                         copy_count, scale, static_cast<Scaling>(scaling)},
                        out);
  return kOk;
}

int32_t ocs_quantize(const char* instruction_set, const float* x, size_t rows, size_t channels,
                     const float* inv_scale, int32_t per_channel, int32_t low, int32_t high,
                     int32_t zero_point, const int32_t* copies, size_t copy_count, int8_t* out) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || low > high || !IsInt8(zero_point) ||
      !IsInt8(int64_t{low} + zero_point) || !IsInt8(int64_t{high} + zero_point)) {
    return kRefused;
  }
  kernels->quantize(
      x, rows, channels,
      {inv_scale, nullptr, per_channel != 0, low, high, zero_point, copies, copy_count}, out);
  return kOk;
}

int32_t ocs_fake_quantize(const char* instruction_set, const float* x, size_t rows,
                          size_t channels, const float* inv_scale, const float* scale,
                          int32_t per_channel, int32_t low, int32_t high, const int32_t* copies,
                          size_t copy_count, float* out) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || low > high || low < -ocs::kMaxCode || high > ocs::kMaxCode) {
    return kRefused;
  }
  kernels->fake_quantize(x, rows, channels,
                         {inv_scale, scale, per_channel != 0, low, high, 0, copies, copy_count},
                         out);
  return kOk;
}

int32_t ocs_multiply(const char* instruction_set, const uint8_t* packed, int32_t bits,
                     size_t rows, size_t columns, const float* x, size_t batch, float* out) {
  const Kernels* kernels = FindKernels(instruction_set);
  if (kernels == nullptr || !ValidBits(bits)) return kRefused;
  kernels->multiply({packed, bits, rows, columns}, x, batch, out);
  return kOk;
}
