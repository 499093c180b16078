// AVX2 with FMA: Intel since Haswell, AMD since Zen.

#include "instruction_sets.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "x86.h"

namespace ocs {
namespace {

struct Isa {
  static constexpr const char* kName = "avx2";
  static constexpr size_t kWidth = 8;
  static constexpr size_t kSums = 8;
  using Floats = __m256;
  using Ints = __m256i;

  static Floats Load(const float* from) { return _mm256_loadu_ps(from); }
  static Floats LoadPart(const float* from, size_t count) {
    return _mm256_maskload_ps(from, First(count));
  }
  static void Store(Floats x, float* to) { _mm256_storeu_ps(to, x); }
  static void Stream(Floats x, float* to) { _mm256_stream_ps(to, x); }
  static void StorePart(Floats x, float* to, size_t count) {
    _mm256_maskstore_ps(to, First(count), x);
  }
  static void Fence() { _mm_sfence(); }

  static Floats Broadcast(float x) { return _mm256_set1_ps(x); }
  static Floats Multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats MultiplyAdd(Floats a, Floats b, Floats sum) {
    return _mm256_fmadd_ps(a, b, sum);
  }
  static float Sum(const Floats (&lanes)[4]) {
    const __m256 sum = _mm256_add_ps(_mm256_add_ps(lanes[0], lanes[2]),
                                     _mm256_add_ps(lanes[1], lanes[3]));
    return SumOfFour(_mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)));
  }

  struct Range {
    explicit Range(const Rounding& rounding)
        : low(_mm256_set1_epi32(rounding.low)),
          high(_mm256_set1_epi32(rounding.high)),
          zero_point(_mm256_set1_epi32(rounding.zero_point)),
          lowest(_mm256_set1_epi8(static_cast<char>(rounding.low + rounding.zero_point))),
          highest(_mm256_set1_epi8(static_cast<char>(rounding.high + rounding.zero_point))) {}
    __m256i low, high, zero_point;
    __m256i lowest, highest;  // int8, zero point included
  };
  static Ints Nearest(Floats x) { return _mm256_cvtps_epi32(x); }
  static bool Defined(const Ints (&x)[4]) {
    const __m256i low = _mm256_min_epi32(_mm256_min_epi32(x[0], x[1]),
                                         _mm256_min_epi32(x[2], x[3]));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi32(low, _mm256_set1_epi32(kUndefined))) == 0;
  }
  static Ints NearestOfAny(Floats x) {
    const __m256 number = _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q));
    return Nearest(_mm256_min_ps(number, _mm256_set1_ps(kHuge)));
  }
  static Ints Clamp(Ints x, const Range& range) {
    return _mm256_min_epi32(_mm256_max_epi32(x, range.low), range.high);
  }
  static Floats ToFloats(Ints x) { return _mm256_cvtepi32_ps(x); }
  template <bool kStream>
  static void StoreCodes(const Ints (&x)[4], const Range& range, int8_t* to) {
    // Packing works on halves of vectors: the halves' fours of codes come out transposed.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i zero_point = _mm256_packs_epi32(range.zero_point, range.zero_point);
    const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(x[0], x[1]), zero_point);
    const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(x[2], x[3]), zero_point);
    const __m256i all = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    const __m256i codes = _mm256_min_epi8(_mm256_max_epi8(all, range.lowest), range.highest);
    if constexpr (kStream) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), codes);
    } else {
      Store32(codes, to);
    }
  }
  static void StoreCodesPart(Ints x, const Range& range, int8_t* to, size_t count) {
    const __m256i codes = _mm256_add_epi32(Clamp(x, range), range.zero_point);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes),
                                          _mm256_extracti128_si256(codes, 1));
    int8_t bytes[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm_packs_epi16(words, words));
    std::memcpy(to, bytes, count);
  }

  // The two bytes that hold a code are moved to the top of its lane, and the code from there down.
  template <int kBits>
  struct Decoder {
    static constexpr bool kInWord = kBits <= 4;  // eight codes fit in a lane
    static constexpr auto kPlaces = MakeTable<int32_t, 8>([](int i) {
      const int byte = WindowByte(kBits, i);
      return byte << 16 | (byte + 1) << 24;
    });
    static constexpr auto kShifts = MakeTable<int32_t, 8>([](int i) {
      return kInWord ? 32 - kBits - i * kBits : WindowShift(kBits, i);
    });

    Decoder() : places(Load32(kPlaces.values)), shifts(Load32(kShifts.values)) {}

    void operator()(const uint8_t* bytes, Floats (&codes)[4]) const {
      for (size_t i = 0; i < 4; ++i) codes[i] = Eight(bytes + i * kBits);
    }

    Floats Eight(const uint8_t* bytes) const {
      __m256i windows;
      if constexpr (kBits == 8) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
      } else if constexpr (kInWord) {
        int32_t word;
        std::memcpy(&word, bytes, sizeof(word));
        windows = _mm256_set1_epi32(word);
      } else {
        int64_t word;
        std::memcpy(&word, bytes, sizeof(word));
        windows = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), places);
      }
      const __m256i top = _mm256_sllv_epi32(windows, shifts);
      return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 32 - kBits));
    }

    __m256i places, shifts;
  };

  template <int kBits>
  static void Unpack(const uint8_t* bytes, int8_t* codes) {
    const __m256i low = UnpackHalf<kBits>(bytes);
    const __m256i high = UnpackHalf<kBits>(bytes + RowBytes(kBits, 16));
    // Packing works on halves of vectors.
    Store32(_mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), _MM_SHUFFLE(3, 1, 2, 0)),
            codes);
  }

  template <int kBits>
  static void Pack(const int8_t* codes, uint8_t* bytes) {
    static constexpr auto kOrder = MakeTable<uint8_t, 32>([](int i) {
      return i % 16 < 2 * kBits ? i % 16 / kBits * 8 + i % 16 % kBits : 0x80;
    });
    const __m256i eights = PackEights<kBits>(Load32(codes));
    const __m256i halves = _mm256_shuffle_epi8(eights, Load32(kOrder.values));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm256_castsi256_si128(halves));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + RowBytes(kBits, 16)),
                     _mm256_extracti128_si256(halves, 1));
  }

 private:
  // The first `count` of 8 elements.
  static __m256i First(size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  // 16 codes of 16 bits.
  template <int kBits>
  static __m256i UnpackHalf(const uint8_t* bytes) {
    static constexpr auto kPlaces = MakeTable<uint8_t, 32>(
        [](int i) { return i / 16 * kBits + WindowByte(kBits, i % 16 / 2) + i % 2; });
    static constexpr auto kShifts =
        MakeTable<int16_t, 16>([](int i) { return 1 << WindowShift(kBits, i % 8); });
    const __m256i all = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m256i windows = _mm256_shuffle_epi8(all, Load32(kPlaces.values));
    // A multiplication shifts lanes of 16 bits by different amounts.
    const __m256i top = _mm256_mullo_epi16(windows, Load32(kShifts.values));
    return _mm256_srai_epi16(top, 16 - kBits);
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

const Microkernels* Avx2Microkernels() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kMicrokernels : nullptr;
}

}  // namespace ocs

#else

namespace ocs {

const Microkernels* Avx2Microkernels() { return nullptr; }

}  // namespace ocs

#endif
