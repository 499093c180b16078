// The kernels for callers by name, such as Python's ctypes.
//
// `instruction_set` is one of those that `ocs_instruction_sets` names. Arguments are those of
// kernels.h. Functions return 0, or 1 if an argument is out of range, having written nothing; sizes
// of arrays and the values of `copies` cannot be checked here.

#ifndef OCS_TF_KERNELS_C_API_H_
#define OCS_TF_KERNELS_C_API_H_

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define OCS_EXPORT extern "C" __declspec(dllexport)
#else
#define OCS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ocs {

// Counts changes of the C API and of the operators.
constexpr int32_t kLibraryVersion = 1;

}  // namespace ocs

OCS_EXPORT int32_t ocs_library_version();

// Those that this processor runs, slowest first, separated by spaces.
OCS_EXPORT const char* ocs_instruction_sets();

OCS_EXPORT int32_t ocs_pack(const char* instruction_set, const int8_t* codes, int32_t bits,
                            size_t rows, size_t columns, uint8_t* packed);

OCS_EXPORT int32_t ocs_unpack(const char* instruction_set, const uint8_t* packed, int32_t bits,
                              size_t rows, size_t columns, int8_t* codes);

// Of `packed_columns` columns, the first `columns`.
OCS_EXPORT int32_t ocs_dequantize(const char* instruction_set, const uint8_t* packed,
                                  int32_t bits, size_t rows, size_t packed_columns,
                                  size_t columns, const float* scale, int32_t scaling,
                                  float* out);

OCS_EXPORT int32_t ocs_dequantize_merged(const char* instruction_set, const uint8_t* packed,
                                         int32_t bits, size_t rows, size_t pixels,
                                         size_t channels, const int32_t* copies,
                                         size_t copy_count, const float* scale, int32_t scaling,
                                         float* out);

OCS_EXPORT int32_t ocs_quantize(const char* instruction_set, const float* x, size_t rows,
                                size_t channels, const float* inv_scale, int32_t per_channel,
                                int32_t low, int32_t high, int32_t zero_point,
                                const int32_t* copies, size_t copy_count, int8_t* out);

OCS_EXPORT int32_t ocs_fake_quantize(const char* instruction_set, const float* x, size_t rows,
                                     size_t channels, const float* inv_scale, const float* scale,
                                     int32_t per_channel, int32_t low, int32_t high,
                                     const int32_t* copies, size_t copy_count, float* out);

OCS_EXPORT int32_t ocs_multiply(const char* instruction_set, const uint8_t* packed, int32_t bits,
                                size_t rows, size_t columns, const float* x, size_t batch,
                                float* out);

#endif  // OCS_TF_KERNELS_C_API_H_
