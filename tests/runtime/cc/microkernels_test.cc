// Every implementation of the microkernels against one that is as simple as can be, bit for bit:
// many shapes, widths, alignments and values. Buffers have exactly the size they need, for
// AddressSanitizer to see what is read or written beyond them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "microkernels.h"

namespace {

using ocs::Microkernels;
using ocs::PackedCodes;
using ocs::Rounding;
using ocs::Scaling;

int cases = 0;

// Not worse than it has to be, and the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  // One of `low` .. `high`.
  int64_t Integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Bits() % static_cast<uint64_t>(high - low + 1));
  }
  size_t Size(size_t high) { return static_cast<size_t>(Integer(0, static_cast<int64_t>(high))); }
  bool Chance(int one_in) { return Integer(1, one_in) == 1; }
  float Uniform(float high) { return high * (static_cast<float>(Bits() >> 40) / (1 << 23) - 1); }
  // Ties, values between them, and all that floats can be.
  float Value() {
    using Limits = std::numeric_limits<float>;
    constexpr float kSpecial[] = {0.0f, -0.0f, Limits::infinity(), -Limits::infinity(),
                                  Limits::quiet_NaN(), Limits::max(), -Limits::max(),
                                  Limits::denorm_min(), -Limits::min(), 8388609.0f, 4194303.5f,
                                  0.49999997f, 2147483648.0f, -2147483648.0f};
    if (Chance(20)) return kSpecial[Size(std::size(kSpecial) - 1)];
    if (Chance(3)) return static_cast<float>(Integer(-600, 600)) / 2;
    return Uniform(Chance(2) ? 4.0f : 300.0f);
  }

 private:
  uint64_t state_;
};

// An array on the heap that ends where its allocation does: a third of them aligned to cache lines,
// the others as little as T allows.
template <typename T>
class Array {
 public:
  Array(size_t size, Random& random)
      : size_(size), offset_(random.Chance(3) ? 0 : random.Size(63) * alignof(T)),
        bytes_(static_cast<uint8_t*>(::operator new(offset_ + size * sizeof(T), kLine))) {
    std::memset(bytes_.get(), 0xa5, offset_ + size * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(bytes_.get() + offset_); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.get() + offset_); }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }
  size_t size() const { return size_; }
  bool MarginIsWhole() const {
    return std::all_of(bytes_.get(), bytes_.get() + offset_, [](int byte) { return byte == 0xa5; });
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(uint8_t* bytes) const { ::operator delete(bytes, kLine); }
  };

  size_t size_;
  size_t offset_;
  std::unique_ptr<uint8_t[], Delete> bytes_;
};

[[noreturn]] void Fail(const char* name, const char* what, size_t index) {
  std::printf("%s: %s differs at %zu\n", name, what, index);
  std::exit(1);
}

bool Same(float a, float b) {
  return std::memcmp(&a, &b, sizeof(a)) == 0 || (std::isnan(a) && std::isnan(b));
}
template <typename T>
bool Same(T a, T b) {
  return a == b;
}

template <typename T>
void Compare(const char* name, const char* what, const Array<T>& got,
             const std::vector<T>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (!Same(got[i], want[i])) Fail(name, what, i);
  }
  if (!got.MarginIsWhole()) Fail(name, what, 0);
  ++cases;
}

std::vector<const Microkernels*> Available() {
  std::vector<const Microkernels*> available;
  for (const char* name : {"plain", "avx2", "avx512", "neon"}) {
    if (const Microkernels* set = ocs::FindMicrokernels(name)) available.push_back(set);
  }
  return available;
}

// Random codes, and their bits one after the other.
struct Codes {
  Codes(int bits, size_t rows, size_t columns, Random& random)
      : bits(bits), rows(rows), columns(columns), values(rows * columns, random),
        packed(rows * ocs::RowBytes(bits, columns), random) {
    std::fill_n(packed.data(), packed.size(), uint8_t{0});
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) {
        const int64_t code = random.Integer(-(1 << (bits - 1)), (1 << (bits - 1)) - 1);
        values[r * columns + c] = static_cast<int8_t>(code);
        for (size_t bit = 0; bit < static_cast<size_t>(bits); ++bit) {
          const size_t place = c * static_cast<size_t>(bits) + bit;
          packed[r * ocs::RowBytes(bits, columns) + place / 8] |=
              static_cast<uint8_t>((code >> bit & 1) << (place % 8));
        }
      }
    }
  }
  int Code(size_t row, size_t column) const { return values[row * columns + column]; }
  PackedCodes Packed() const { return {packed.data(), bits, rows, columns}; }

  int bits;
  size_t rows, columns;
  Array<int8_t> values;
  Array<uint8_t> packed;
};

Array<float> Values(size_t size, Random& random) {
  Array<float> values(size, random);
  for (size_t i = 0; i < size; ++i) values[i] = random.Value();
  return values;
}

Array<int32_t> Copies(size_t size, size_t channels, Random& random) {
  Array<int32_t> copies(size, random);
  for (size_t i = 0; i < size; ++i) copies[i] = static_cast<int32_t>(random.Size(channels - 1));
  return copies;
}

size_t Count(Scaling scaling, size_t rows, size_t columns) {
  return scaling == Scaling::kTensor ? 1 : scaling == Scaling::kRow ? rows : columns;
}

size_t Index(Scaling scaling, size_t row, size_t column) {
  return scaling == Scaling::kTensor ? 0 : scaling == Scaling::kRow ? row : column;
}

void TestPacking(int bits, size_t rows, size_t columns, Random& random) {
  const Codes codes(bits, rows, columns, random);
  for (const Microkernels* set : Available()) {
    Array<uint8_t> packed(codes.packed.size(), random);
    set->pack(codes.values.data(), bits, rows, columns, packed.data());
    const uint8_t* bytes = codes.packed.data();
    Compare(set->name, "pack", packed, std::vector<uint8_t>(bytes, bytes + packed.size()));

    Array<int8_t> unpacked(rows * columns, random);
    set->unpack(codes.Packed(), unpacked.data());
    const int8_t* values = codes.values.data();
    Compare(set->name, "unpack", unpacked,
            std::vector<int8_t>(values, values + unpacked.size()));
  }
}

void TestDequantize(int bits, size_t rows, size_t columns, size_t more_columns, Random& random) {
  const Codes codes(bits, rows, columns + more_columns, random);
  for (Scaling scaling : {Scaling::kTensor, Scaling::kRow, Scaling::kColumn}) {
    const Array<float> scale = Values(Count(scaling, rows, columns), random);
    std::vector<float> want;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) {
        want.push_back(static_cast<float>(codes.Code(r, c)) * scale[Index(scaling, r, c)]);
      }
    }
    for (const Microkernels* set : Available()) {
      Array<float> out(rows * columns, random);
      set->dequantize(codes.Packed(), columns, scale.data(), scaling, out.data());
      Compare(set->name, "dequantize", out, want);
    }
  }
}

void TestDequantizeMerged(int bits, size_t rows, size_t pixels, size_t channels,
                          size_t copy_count, Random& random) {
  const size_t columns = pixels * channels;
  const Codes codes(bits, rows, columns + pixels * copy_count, random);
  const Array<int32_t> copies = Copies(copy_count, channels, random);
  for (Scaling scaling : {Scaling::kTensor, Scaling::kRow, Scaling::kColumn}) {
    const Array<float> scale = Values(Count(scaling, rows, columns), random);
    std::vector<float> want;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < columns; ++c) {
        int sum = codes.Code(r, c);
        for (size_t i = 0; i < copy_count; ++i) {
          const bool same_channel = static_cast<size_t>(copies[i]) == c % channels;
          if (same_channel) sum += codes.Code(r, columns + c / channels * copy_count + i);
        }
        want.push_back(static_cast<float>(sum) * scale[Index(scaling, r, c)]);
      }
    }
    for (const Microkernels* set : Available()) {
      Array<float> out(rows * columns, random);
      ocs::DequantizeMerged(*set,
                            {codes.Packed(), pixels, channels, copies.data(), copy_count,
                             scale.data(), scaling},
                            out.data());
      Compare(set->name, "DequantizeMerged", out, want);
    }
  }
}

int RoundedCode(float x, int low, int high) {
  const double rounded = std::isnan(x) ? 0 : std::nearbyint(static_cast<double>(x));
  return static_cast<int>(std::min<double>(std::max<double>(rounded, low), high));
}

void TestRounding(size_t rows, size_t channels, size_t copy_count, Random& random) {
  const Array<float> x = Values(rows * channels, random);
  const Array<int32_t> copies = Copies(copy_count, channels, random);
  const size_t width = channels + copy_count;
  for (bool per_channel : {false, true}) {
    const Array<float> inv_scale = Values(per_channel ? width : 1, random);
    const Array<float> scale = Values(per_channel ? width : 1, random);
    const auto zero_point = static_cast<int32_t>(random.Integer(-128, 127));
    auto low = static_cast<int32_t>(random.Integer(-128 - zero_point, 127 - zero_point));
    auto high = static_cast<int32_t>(random.Integer(low, 127 - zero_point));
    const auto fake_low = static_cast<int32_t>(random.Integer(-65535, 65535));
    const auto fake_high = static_cast<int32_t>(random.Integer(fake_low, 65535));
    std::vector<int8_t> want_codes;
    std::vector<float> want_floats;
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < width; ++c) {
        const size_t read = c < channels ? c : static_cast<size_t>(copies[c - channels]);
        const float scaled = x[r * channels + read] * inv_scale[per_channel ? c : 0];
        want_codes.push_back(static_cast<int8_t>(RoundedCode(scaled, low, high) + zero_point));
        want_floats.push_back(static_cast<float>(RoundedCode(scaled, fake_low, fake_high)) *
                              scale[per_channel ? c : 0]);
      }
    }
    for (const Microkernels* set : Available()) {
      Array<int8_t> codes(rows * width, random);
      const Rounding to_codes = {inv_scale.data(), nullptr,       per_channel, low, high,
                                 zero_point,       copies.data(), copy_count};
      set->quantize(x.data(), rows, channels, to_codes, codes.data());
      Compare(set->name, "quantize", codes, want_codes);

      Array<float> floats(rows * width, random);
      const Rounding to_floats = {inv_scale.data(), scale.data(),  per_channel, fake_low,
                                  fake_high,        0,             copies.data(), copy_count};
      set->fake_quantize(x.data(), rows, channels, to_floats, floats.data());
      Compare(set->name, "fake_quantize", floats, want_floats);
    }
  }
}

// As docs/packed.md orders the additions.
float Dot(const Codes& codes, size_t row, const float* x) {
  std::vector<float> sums(32, 0.0f);
  for (size_t c = 0; c < codes.columns; ++c) {
    sums[c % 32] = std::fma(static_cast<float>(codes.Code(row, c)), x[c], sums[c % 32]);
  }
  while (sums.size() > 1) {
    const size_t half = sums.size() / 2;
    for (size_t i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
    sums.resize(half);
  }
  return sums[0];
}

void TestMultiply(int bits, size_t rows, size_t columns, size_t batch, Random& random) {
  const Codes codes(bits, rows, columns, random);
  const bool special = random.Chance(4);
  Array<float> x(batch * columns, random);
  for (size_t i = 0; i < x.size(); ++i) x[i] = special ? random.Value() : random.Uniform(3.0f);
  std::vector<float> want;
  for (size_t b = 0; b < batch; ++b) {
    for (size_t r = 0; r < rows; ++r) want.push_back(Dot(codes, r, x.data() + b * columns));
  }
  for (const Microkernels* set : Available()) {
    Array<float> out(batch * rows, random);
    set->multiply(codes.Packed(), x.data(), batch, out.data());
    Compare(set->name, "multiply", out, want);
  }
}

// What is above agrees with numbers worked out by hand.
void TestByHand() {
  Random random(0);
  for (const Microkernels* set : Available()) {
    Array<int8_t> codes(4, random);
    const int8_t by_hand[] = {1, -2, 3, -4};
    std::copy(std::begin(by_hand), std::end(by_hand), codes.data());
    Array<uint8_t> packed(2, random);
    set->pack(codes.data(), 3, 1, 4, packed.data());
    const int bits = 0b001 | 0b110 << 3 | 0b011 << 6 | 0b100 << 9;
    Compare(set->name, "pack", packed,
            {static_cast<uint8_t>(bits & 255), static_cast<uint8_t>(bits >> 8)});

    const float x[] = {0.5f, 1.5f, -2.5f, 1e30f, std::nanf("")};
    const float one = 1.0f;
    const int32_t copies[] = {2, 1};
    Array<int8_t> rounded(7, random);
    set->quantize(x, 1, 5, {&one, nullptr, false, -8, 7, 1, copies, 2}, rounded.data());
    Compare(set->name, "quantize", rounded, {0 + 1, 2 + 1, -2 + 1, 7 + 1, 1, -2 + 1, 2 + 1});
  }
}

void TestAll(Random& random) {
  const bool wide = random.Chance(8);
  const size_t rows = random.Size(4);
  const size_t columns = random.Size(wide ? 700 : 90);
  for (int bits = ocs::kMinBits; bits <= ocs::kMaxBits; ++bits) {
    TestPacking(bits, rows, columns, random);
    TestDequantize(bits, rows, columns, random.Chance(2) ? 0 : random.Size(70), random);
    TestDequantizeMerged(bits, rows, random.Size(5), 1 + random.Size(wide ? 130 : 20),
                         random.Size(wide ? 70 : 6), random);
    TestMultiply(bits, rows, columns, random.Size(6), random);
  }
  const size_t channels = 1 + random.Size(wide ? 700 : 90);
  TestRounding(rows, channels, random.Chance(2) ? 0 : random.Size(wide ? 150 : 9), random);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t rounds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 300;
  TestByHand();
  for (uint64_t seed = 1; seed <= rounds; ++seed) {
    Random random(seed);
    TestAll(random);
  }
  // Outputs of more than 8 MiB, which are written around the caches if their place allows it.
  Random random(0);
  for (int i = 0; i < 6; ++i) {
    TestDequantize(4 + i % 2, 70, (1 << 15) - i / 4, 0, random);
    TestRounding(9, 950000, 3, random);
  }
  std::printf("%d cases passed:", cases);
  for (const Microkernels* set : Available()) std::printf(" %s", set->name);
  std::printf("\n");
  return 0;
}
