// The choice of an instruction set, and what is built on it.

#include <algorithm>
#include <cstring>
#include <string>

#include "exports.h"
#include "instruction_sets.h"

namespace ocs {

const Microkernels& BestMicrokernels() {
  static const Microkernels& best = [&]() -> const Microkernels& {
    for (const Microkernels* set :
         {Avx512Microkernels(), Avx2Microkernels(), NeonMicrokernels()}) {
      if (set != nullptr) return *set;
    }
    return *PlainMicrokernels();
  }();
  return best;
}

const Microkernels* FindMicrokernels(const char* name) {
  for (const Microkernels* set :
       {PlainMicrokernels(), Avx2Microkernels(), Avx512Microkernels(), NeonMicrokernels()}) {
    if (set != nullptr && std::strcmp(set->name, name) == 0) return set;
  }
  return nullptr;
}

namespace {

// Adds the codes of copies to those of a row [pixels, channels], which are floats already.
void AddCopies(const Microkernels& microkernels, const MergedKernel& kernel, const uint8_t* row,
               float* out) {
  constexpr size_t kBlock = 256;
  int8_t codes[kBlock];
  const int bits = kernel.packed.bits;
  const size_t end = kernel.packed.columns;
  size_t column = kernel.pixels * kernel.channels;
  size_t copy = 0;
  while (column < end) {
    const size_t skip = column % 8;  // whole bytes start at each eighth code
    const size_t count = std::min(kBlock, end - column + skip);
    microkernels.unpack({row + RowBytes(bits, column - skip), bits, 1, count}, codes);
    for (size_t i = skip; i < count; ++i, ++column) {
      out[kernel.copies[copy]] += static_cast<float>(codes[i]);
      if (++copy == kernel.copy_count) {
        copy = 0;
        out += kernel.channels;  // the next pixel
      }
    }
  }
}

}  // namespace

void DequantizeMerged(const Microkernels& microkernels, const MergedKernel& kernel, float* out) {
  const PackedCodes& packed = kernel.packed;
  const size_t columns = kernel.pixels * kernel.channels;
  if (kernel.copy_count == 0) {
    microkernels.dequantize(packed, columns, kernel.scale, kernel.scaling, out);
    return;
  }
  const size_t row_bytes = RowBytes(packed.bits, packed.columns);
  for (size_t r = 0; r < packed.rows; ++r, out += columns) {
    const uint8_t* row = packed.data + r * row_bytes;
    const float one = 1.0f;
    microkernels.dequantize({row, packed.bits, 1, packed.columns}, columns, &one, Scaling::kTensor,
                       out);
    AddCopies(microkernels, kernel, row, out);
    if (kernel.scaling == Scaling::kColumn) {
      for (size_t c = 0; c < columns; ++c) out[c] *= kernel.scale[c];
    } else {
      const float scale = kernel.scale[kernel.scaling == Scaling::kRow ? r : 0];
      for (size_t c = 0; c < columns; ++c) out[c] *= scale;
    }
  }
}

}  // namespace ocs

const char* ocs_instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const ocs::Microkernels* set : {ocs::PlainMicrokernels(), ocs::NeonMicrokernels(),
                                         ocs::Avx2Microkernels(), ocs::Avx512Microkernels()}) {
      if (set == nullptr) continue;
      if (!joined.empty()) joined += ' ';
      joined += set->name;
    }
    return joined;
  }();
  return names.c_str();
}
