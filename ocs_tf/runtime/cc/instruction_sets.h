// The implementations of `Microkernels`, one per instruction set, each in the file of its name; and
// what they share.

#ifndef OCS_TF_RUNTIME_INSTRUCTION_SETS_H_
#define OCS_TF_RUNTIME_INSTRUCTION_SETS_H_

#include <type_traits>

#include "microkernels.h"

namespace ocs {

// nullptr if this processor or build lacks the instruction set.
const Microkernels* PlainMicrokernels();
const Microkernels* Avx2Microkernels();
const Microkernels* Avx512Microkernels();
const Microkernels* NeonMicrokernels();

// `multiply` adds in this many lanes (docs/packed.md, "Order of additions").
constexpr size_t kLanes = 32;

// Calls `function` with `bits` as a constant of its type.
template <typename Function>
inline void ForBits(int bits, const Function& function) {
  switch (bits) {
    case 2: return function(std::integral_constant<int, 2>());
    case 3: return function(std::integral_constant<int, 3>());
    case 4: return function(std::integral_constant<int, 4>());
    case 5: return function(std::integral_constant<int, 5>());
    case 6: return function(std::integral_constant<int, 6>());
    case 7: return function(std::integral_constant<int, 7>());
    case 8: return function(std::integral_constant<int, 8>());
  }
}

// An array that fills the vector register it is meant for.
template <typename T, int kCount>
struct Table {
  alignas(64) T values[kCount];
};

// The table of `value(0)`, `value(1)`, ...
template <typename T, int kCount, typename Function>
constexpr Table<T, kCount> MakeTable(Function value) {
  Table<T, kCount> table = {};
  for (int i = 0; i < kCount; ++i) table.values[i] = static_cast<T>(value(i));
  return table;
}

// Of a run of packed codes, code `i` is in the two bytes from this one ...
constexpr int WindowByte(int bits, int i) { return i * bits / 8; }

// ... and at their top if they are shifted left by this.
constexpr int WindowShift(int bits, int i) { return 16 - bits - i * bits % 8; }

}  // namespace ocs

#endif  // OCS_TF_RUNTIME_INSTRUCTION_SETS_H_
