// All that the library exports.

#ifndef OCS_TF_RUNTIME_EXPORTS_H_
#define OCS_TF_RUNTIME_EXPORTS_H_

#include <cstddef>
#include <cstdint>

#include "tflite_abi.h"

#if defined(_WIN32)
#define OCS_EXPORT extern "C" __declspec(dllexport)
#else
#define OCS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ocs {

// Counts incompatible changes of the operators and of what is exported.
constexpr int32_t kLibraryVersion = 1;

}  // namespace ocs

OCS_EXPORT int32_t ocs_library_version();

// Those that this processor runs, slowest first, separated by spaces.
OCS_EXPORT const char* ocs_instruction_sets();

// The two functions that a runtime looks for.
OCS_EXPORT ocs::tflite::Delegate* tflite_plugin_create_delegate(const char* const* keys,
                                                                const char* const* values,
                                                                size_t option_count,
                                                                void (*report)(const char*));
OCS_EXPORT void tflite_plugin_destroy_delegate(ocs::tflite::Delegate* delegate);

#endif  // OCS_TF_RUNTIME_EXPORTS_H_
