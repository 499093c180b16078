// Plain C++: what the other implementations must equal, and the one that every processor runs.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "instruction_sets.h"

namespace ocs {
namespace {

// Eight codes fill `kBits` bytes.
constexpr size_t kGroup = 8;

template <int kBits>
inline void UnpackGroup(const uint8_t* bytes, int8_t* codes) {
  uint64_t word = 0;
  for (int i = 0; i < kBits; ++i) word |= uint64_t{bytes[i]} << (8 * i);
  for (int i = 0; i < 8; ++i) {
    // To the top of a byte and down again, which copies the sign.
    const auto top = static_cast<uint8_t>(word >> (i * kBits) << (8 - kBits));
    codes[i] = static_cast<int8_t>(static_cast<int8_t>(top) >> (8 - kBits));
  }
}

// Codes are unpacked in blocks.
constexpr size_t kBlock = 32;
static_assert(kBlock == kLanes);

// The first `count` codes, in the first `count` places of `codes`.
template <int kBits>
inline void UnpackBlock(const uint8_t* bytes, size_t count, int8_t (&codes)[kBlock]) {
  uint8_t padded[RowBytes(kBits, kBlock)];
  if (count < kBlock) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, bytes, RowBytes(kBits, count));
    bytes = padded;
  }
  for (size_t i = 0; i < kBlock; i += kGroup) {
    UnpackGroup<kBits>(bytes + RowBytes(kBits, i), codes + i);
  }
}

template <int kBits>
void PackRow(const int8_t* codes, size_t count, uint8_t* bytes) {
  for (size_t done = 0; done < count; done += kGroup, bytes += kBits) {
    const size_t group = std::min(kGroup, count - done);
    uint64_t word = 0;
    for (size_t i = 0; i < group; ++i) {
      const auto code = static_cast<uint8_t>(codes[done + i]);
      word |= uint64_t{code & ((1u << kBits) - 1)} << (i * kBits);
    }
    for (size_t i = 0; i < RowBytes(kBits, group); ++i) {
      bytes[i] = static_cast<uint8_t>(word >> (8 * i));
    }
  }
}

void Pack(const int8_t* codes, int bits, size_t rows, size_t columns, uint8_t* packed) {
  const size_t row_bytes = RowBytes(bits, columns);
  ForBits(bits, [&](auto constant) {
    for (size_t r = 0; r < rows; ++r) {
      PackRow<decltype(constant)::value>(codes + r * columns, columns, packed + r * row_bytes);
    }
  });
}

// Calls `use(row, first column, codes, count)` for each block of the first `columns` columns.
template <int kBits, typename Use>
inline void ForBlocks(const PackedCodes& packed, size_t columns, const Use& use) {
  const size_t row_bytes = RowBytes(kBits, packed.columns);
  int8_t codes[kBlock];
  for (size_t r = 0; r < packed.rows; ++r) {
    for (size_t c = 0; c < columns; c += kBlock) {
      const size_t count = std::min(kBlock, columns - c);
      UnpackBlock<kBits>(packed.data + r * row_bytes + RowBytes(kBits, c), count, codes);
      use(r, c, codes, count);
    }
  }
}

void Unpack(const PackedCodes& packed, int8_t* out) {
  ForBits(packed.bits, [&](auto constant) {
    ForBlocks<decltype(constant)::value>(
        packed, packed.columns, [&](size_t r, size_t c, const int8_t* codes, size_t count) {
          std::memcpy(out + r * packed.columns + c, codes, count);
        });
  });
}

void Dequantize(const PackedCodes& packed, size_t columns, const float* scale, Scaling scaling,
                float* out) {
  const size_t row_step = scaling == Scaling::kRow ? 1 : 0;
  const size_t column_step = scaling == Scaling::kColumn ? 1 : 0;
  ForBits(packed.bits, [&](auto constant) {
    ForBlocks<decltype(constant)::value>(
        packed, columns, [&](size_t r, size_t c, const int8_t* codes, size_t count) {
          for (size_t i = 0; i < count; ++i) {
            out[r * columns + c + i] =
                static_cast<float>(codes[i]) * scale[r * row_step + (c + i) * column_step];
          }
        });
  });
}

// `x` as a code less the zero point: an integer in low .. high.
inline float Round(float x, float low, float high) {
  // The sum has no room for a fraction; clamped codes are small enough for it to be exact.
  constexpr float kNoFraction = 3 << 22;
  x = x == x ? x : 0.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  return (x + kNoFraction) - kNoFraction;
}

// Calls `put(position in out, code, scale's index)` for all elements, copies included.
template <typename Put>
inline void RoundAll(const float* x, size_t rows, size_t channels, const Rounding& rounding,
                     const Put& put) {
  const auto low = static_cast<float>(rounding.low);
  const auto high = static_cast<float>(rounding.high);
  const size_t step = rounding.per_channel ? 1 : 0;
  const size_t width = channels + rounding.copy_count;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < channels; ++c) {
      const float code = Round(x[r * channels + c] * rounding.inv_scale[c * step], low, high);
      put(r * width + c, code, c * step);
    }
    for (size_t i = 0; i < rounding.copy_count; ++i) {
      const size_t c = channels + i;
      const float read = x[r * channels + static_cast<size_t>(rounding.copies[i])];
      put(r * width + c, Round(read * rounding.inv_scale[c * step], low, high), c * step);
    }
  }
}

void Quantize(const float* x, size_t rows, size_t channels, const Rounding& rounding,
              int8_t* out) {
  RoundAll(x, rows, channels, rounding, [&](size_t position, float code, size_t) {
    out[position] = static_cast<int8_t>(static_cast<int32_t>(code) + rounding.zero_point);
  });
}

void FakeQuantize(const float* x, size_t rows, size_t channels, const Rounding& rounding,
                  float* out) {
  RoundAll(x, rows, channels, rounding, [&](size_t position, float code, size_t index) {
    out[position] = code * rounding.scale[index];
  });
}

inline float SumOfLanes(float* lanes) {
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <int kBits>
void MultiplyRow(const uint8_t* bytes, size_t columns, const float* x, size_t batch, float* out,
                 size_t out_step) {
  constexpr size_t kSome = 4;  // codes are unpacked once for this many
  int8_t codes[kBlock];
  for (size_t first = 0; first < batch; first += kSome) {
    const size_t some = std::min(kSome, batch - first);
    float lanes[kSome][kLanes] = {};
    for (size_t c = 0; c < columns; c += kBlock) {
      const size_t count = std::min(kBlock, columns - c);
      UnpackBlock<kBits>(bytes + RowBytes(kBits, c), count, codes);
      for (size_t b = 0; b < some; ++b) {
        const float* values = x + (first + b) * columns + c;
        for (size_t i = 0; i < count; ++i) {
          lanes[b][i] = std::fma(static_cast<float>(codes[i]), values[i], lanes[b][i]);
        }
      }
    }
    for (size_t b = 0; b < some; ++b) out[(first + b) * out_step] = SumOfLanes(lanes[b]);
  }
}

void Multiply(const PackedCodes& packed, const float* x, size_t batch, float* out) {
  const size_t row_bytes = RowBytes(packed.bits, packed.columns);
  ForBits(packed.bits, [&](auto constant) {
    for (size_t r = 0; r < packed.rows; ++r) {
      MultiplyRow<decltype(constant)::value>(packed.data + r * row_bytes, packed.columns, x,
                                             batch, out + r, packed.rows);
    }
  });
}

constexpr Microkernels kPlain = [] {
  Microkernels set = {};
  set.name = "plain";
  set.pack = Pack;
  set.unpack = Unpack;
  set.dequantize = Dequantize;
  set.quantize = Quantize;
  set.fake_quantize = FakeQuantize;
  set.multiply = Multiply;
  return set;
}();

}  // namespace

const Microkernels* PlainMicrokernels() { return &kPlain; }

}  // namespace ocs
