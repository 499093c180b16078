// AVX-512 with VBMI: Intel since Ice Lake, AMD since Zen 4.

#include "instruction_sets.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wuninitialized"  // of gcc's own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")
#endif

#include "x86.h"

namespace ocs {
namespace {

// The first `count` of 16 elements.
inline __mmask16 First(size_t count) { return static_cast<__mmask16>((1u << count) - 1); }

struct Isa {
  static constexpr const char* kName = "avx512";
  static constexpr size_t kWidth = 16;
  static constexpr size_t kSums = 16;
  using Floats = __m512;
  using Ints = __m512i;

  static Floats Load(const float* from) { return _mm512_loadu_ps(from); }
  static Floats LoadPart(const float* from, size_t count) {
    return _mm512_maskz_loadu_ps(First(count), from);
  }
  static void Store(Floats x, float* to) { _mm512_storeu_ps(to, x); }
  static void Stream(Floats x, float* to) { _mm512_stream_ps(to, x); }
  static void StorePart(Floats x, float* to, size_t count) {
    _mm512_mask_storeu_ps(to, First(count), x);
  }
  static void Fence() { _mm_sfence(); }

  static Floats Broadcast(float x) { return _mm512_set1_ps(x); }
  static Floats Multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats MultiplyAdd(Floats a, Floats b, Floats sum) {
    return _mm512_fmadd_ps(a, b, sum);
  }
  static float Sum(const Floats (&lanes)[2]) {
    const __m512 sum = _mm512_add_ps(lanes[0], lanes[1]);
    const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
    return SumOfFour(by4);
  }

  struct Range {
    explicit Range(const Rounding& rounding)
        : low(_mm512_set1_epi32(rounding.low)),
          high(_mm512_set1_epi32(rounding.high)),
          zero_point(_mm512_set1_epi32(rounding.zero_point)),
          lowest(_mm512_set1_epi8(static_cast<char>(rounding.low + rounding.zero_point))),
          highest(_mm512_set1_epi8(static_cast<char>(rounding.high + rounding.zero_point))) {}
    __m512i low, high, zero_point;
    __m512i lowest, highest;  // int8, zero point included
  };
  static Ints Nearest(Floats x) {
    return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static bool Defined(const Ints (&x)[4]) {
    const __m512i low = _mm512_min_epi32(_mm512_min_epi32(x[0], x[1]),
                                         _mm512_min_epi32(x[2], x[3]));
    return _mm512_cmpeq_epi32_mask(low, _mm512_set1_epi32(kUndefined)) == 0;
  }
  static Ints NearestOfAny(Floats x) {
    const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    return Nearest(_mm512_maskz_min_ps(number, x, _mm512_set1_ps(kHuge)));
  }
  static Ints Clamp(Ints x, const Range& range) {
    return _mm512_min_epi32(_mm512_max_epi32(x, range.low), range.high);
  }
  static Floats ToFloats(Ints x) { return _mm512_cvtepi32_ps(x); }
  template <bool kStream>
  static void StoreCodes(const Ints (&x)[4], const Range& range, int8_t* to) {
    // Packing works on quarters of vectors: the quarters' fours of codes come out transposed.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i zero_point = _mm512_packs_epi32(range.zero_point, range.zero_point);
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(x[0], x[1]), zero_point);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(x[2], x[3]), zero_point);
    const __m512i all = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
    const __m512i codes = _mm512_min_epi8(_mm512_max_epi8(all, range.lowest), range.highest);
    if constexpr (kStream) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), codes);
    } else {
      _mm512_storeu_si512(to, codes);
    }
  }
  static void StoreCodesPart(Ints x, const Range& range, int8_t* to, size_t count) {
    const __m512i codes = _mm512_add_epi32(Clamp(x, range), range.zero_point);
    _mm512_mask_cvtepi32_storeu_epi8(to, First(count), codes);
  }

  // A lane gets two codes, 16 apart, in its lowest bytes. Put into the mantissa of a power of two,
  // where their lowest bit counts as 1, they become floats by a subtraction.
  template <int kBits>
  struct Decoder {
    // The codes 2 j and 2 j + 1, then 2 j + 16 and 2 j + 17, are in the four bytes from these ...
    static constexpr auto kPlaces = MakeTable<uint8_t, 64>([](int i) {
      return WindowByte(kBits, i / 8 * 2 + (i % 8 < 4 ? 0 : 16)) + i % 4;
    });
    // ... and start at these bits of the eight.
    static constexpr auto kStarts = MakeTable<uint8_t, 64>([](int i) {
      const int code = i / 8 * 2 + (i % 4 == 1 ? 16 : 0);
      return (i % 4 == 1 ? 32 : 0) + code * kBits % 8 + (i % 8 < 4 ? 0 : kBits);
    });
    static constexpr int32_t kMask = (1 << kBits) - 1;
    static constexpr int32_t kSign = 1 << (kBits - 1);
    static constexpr float kLow = 1 << 23, kHigh = 1 << 15;  // codes start at bits 0 and 8

    Decoder()
        : places(_mm512_load_si512(kPlaces.values)),
          starts(_mm512_load_si512(kStarts.values)),
          masks{_mm512_set1_epi32(kMask), _mm512_set1_epi32(kMask << 8)},
          flips{Flip(kLow, kSign), Flip(kHigh, kSign << 8)},
          offsets{_mm512_set1_ps(kLow + kSign), _mm512_set1_ps(kHigh + kSign)} {}

    void operator()(const uint8_t* bytes, Floats (&codes)[2]) const {
      const __m512i all = _mm512_castsi256_si512(Load32(bytes));
      const __m512i low =
          _mm512_multishift_epi64_epi8(starts, _mm512_permutexvar_epi8(places, all));
      for (size_t i = 0; i < 2; ++i) {
        constexpr int kAndXor = 0x6a;
        const __m512i bits = _mm512_ternarylogic_epi32(low, masks[i], flips[i], kAndXor);
        codes[i] = _mm512_sub_ps(_mm512_castsi512_ps(bits), offsets[i]);
      }
    }

    static __m512i Flip(float power, int32_t sign) {
      return _mm512_or_si512(_mm512_castps_si512(_mm512_set1_ps(power)),
                             _mm512_set1_epi32(sign));
    }

    const __m512i places, starts, masks[2], flips[2];
    const __m512 offsets[2];
  };

  template <int kBits>
  static void Unpack(const uint8_t* bytes, int8_t* codes) {
    // The bytes of each eight codes, and where the codes start in them.
    static constexpr auto kEights =
        MakeTable<uint8_t, 32>([](int i) { return i / 8 * kBits + i % 8; });
    static constexpr auto kStarts = MakeTable<uint8_t, 32>([](int i) { return i % 8 * kBits; });
    const __m256i eights = _mm256_permutexvar_epi8(Load32(kEights.values), Load32(bytes));
    const __m256i low = _mm256_multishift_epi64_epi8(Load32(kStarts.values), eights);
    // (x & mask ^ sign) - sign copies the sign to the bits above.
    const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << kBits) - 1));
    const __m256i sign = _mm256_set1_epi8(static_cast<char>(1 << (kBits - 1)));
    const __m256i flipped = _mm256_xor_si256(_mm256_and_si256(low, mask), sign);
    Store32(_mm256_sub_epi8(flipped, sign), codes);
  }

  template <int kBits>
  static void Pack(const int8_t* codes, uint8_t* bytes) {
    static constexpr auto kOrder =
        MakeTable<uint8_t, 32>([](int i) { return i / kBits * 8 + i % kBits; });
    Store32(_mm256_permutexvar_epi8(Load32(kOrder.values), PackEights<kBits>(Load32(codes))),
            bytes);
  }
};

}  // namespace
}  // namespace ocs

#include "simd.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace ocs {

const Microkernels* Avx512Microkernels() {
  __builtin_cpu_init();
  const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vbmi");
  return runs ? &kMicrokernels : nullptr;
}

}  // namespace ocs

#else

namespace ocs {

const Microkernels* Avx512Microkernels() { return nullptr; }

}  // namespace ocs

#endif
