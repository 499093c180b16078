#include "ops.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ocs {
namespace {

using tflite::Tensor;

constexpr int32_t kVersion = 1;
constexpr size_t kMaxRank = 8;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const char* TypeName(int32_t type) {
  switch (type) {
    case tflite::kFloat32: return "float32";
    case tflite::kInt32: return "int32";
    case tflite::kUInt8: return "uint8";
    case tflite::kInt8: return "int8";
    default: return "another one";
  }
}

template <typename T>
constexpr tflite::Type TypeOf() {
  if constexpr (std::is_same_v<T, float>) return tflite::kFloat32;
  if constexpr (std::is_same_v<T, int32_t>) return tflite::kInt32;
  if constexpr (std::is_same_v<T, uint8_t>) return tflite::kUInt8;
}

bool CheckType(const Tensor& tensor, const char* name, tflite::Type type, Error* error) {
  if (tensor.type == type) return true;
  return error->Set("the type of `%s` is %s (%d), but must be %s", name, TypeName(tensor.type),
                    static_cast<int>(tensor.type), TypeName(type));
}

bool CheckCounts(const NodeView& node, int least, int most, Error* error) {
  const int inputs = node.inputs == nullptr ? 0 : node.inputs->size;
  const int outputs = node.outputs == nullptr ? 0 : node.outputs->size;
  if (inputs < least || inputs > most) {
    return error->Set("it has %d inputs, but must have %d to %d", inputs, least, most);
  }
  if (outputs != 1) return error->Set("it has %d outputs, but must have 1", outputs);
  return true;
}

bool IsMissing(const NodeView& node, int input) {
  return input >= node.inputs->size || node.inputs->data[input] == tflite::kOptionalTensor;
}

bool CheckIndex(const NodeView& node, int index, const char* name, Error* error) {
  if (index >= 0 && static_cast<size_t>(index) < node.tensors_size) return true;
  return error->Set("`%s` is tensor %d of %zu", name, index, node.tensors_size);
}

struct Constant {
  const void* data = nullptr;  // of any alignment; nullptr after an error
  size_t count = 0;
};

template <typename T>
Constant FindConstant(const NodeView& node, int input, const char* name, Error* error) {
  if (IsMissing(node, input)) {
    error->Set("`%s` (input %d) is missing", name, input);
    return {};
  }
  const int index = node.inputs->data[input];
  if (!CheckIndex(node, index, name, error)) return {};
  const Tensor& tensor = node.tensors[index];
  if (!CheckType(tensor, name, TypeOf<T>(), error)) return {};
  if (tensor.allocation_type != tflite::kMmapRo || tensor.data == nullptr) {
    error->Set("`%s` (input %d) must be a constant of the file", name, input);
    return {};
  }
  if (tensor.dims == nullptr || tensor.dims->size != 1 || tensor.dims->data[0] < 0) {
    error->Set("`%s` must have one dimension", name);
    return {};
  }
  const auto count = static_cast<size_t>(tensor.dims->data[0]);
  if (tensor.bytes != count * sizeof(T)) {
    error->Set("`%s` has %zu bytes, but %zu elements of %zu", name, tensor.bytes, count,
               sizeof(T));
    return {};
  }
  return {tensor.data, count};
}

template <typename T>
bool ReadConstant(const NodeView& node, int input, const char* name, std::vector<T>* values,
                  Error* error) {
  const Constant constant = FindConstant<T>(node, input, name, error);
  if (constant.data == nullptr) return false;
  values->resize(constant.count);
  if (constant.count > 0) std::memcpy(values->data(), constant.data, constant.count * sizeof(T));
  return true;
}

bool ReadMeta(const NodeView& node, int input, size_t least, size_t most,
              std::vector<int32_t>* meta, Error* error) {
  if (!ReadConstant(node, input, "meta", meta, error)) return false;
  if (!meta->empty() && meta->front() != kVersion) {
    return error->Set("`meta` is of version %d of the format, but this library reads version %d;"
                      " use the ocs_tf that wrote the file, or a newer one",
                      meta->front(), kVersion);
  }
  if (meta->size() < least || meta->size() > most) {
    return error->Set("`meta` has %zu elements, but must have %zu to %zu", meta->size(), least,
                      most);
  }
  return true;
}

bool CheckCopies(const std::vector<int32_t>& copies, size_t channels, Error* error) {
  for (const int32_t copy : copies) {
    if (copy < 0 || static_cast<size_t>(copy) >= channels) {
      return error->Set("`copies` has channel %d, but there are %zu", copy, channels);
    }
  }
  return true;
}

// Leaves `copies` empty if the input is missing.
bool ReadCopies(const NodeView& node, int input, std::vector<int32_t>* copies, Error* error) {
  return IsMissing(node, input) || ReadConstant(node, input, "copies", copies, error);
}

bool ReadCodes(const NodeView& node, int input, int32_t bits, size_t rows, size_t columns,
               PackedCodes* packed, Error* error) {
  if (bits < kMinBits || bits > kMaxBits) {
    return error->Set("`meta` has %d bits, but must have %d to %d", bits, kMinBits, kMaxBits);
  }
  const Constant codes = FindConstant<uint8_t>(node, input, "packed", error);
  if (codes.data == nullptr) return false;
  size_t bytes;
  if (!Multiply(rows, RowBytes(bits, columns), &bytes) || codes.count != bytes) {
    return error->Set("`packed` has %zu bytes, which is not %zu rows of %zu codes of %d bits",
                      codes.count, rows, columns, bits);
  }
  *packed = {static_cast<const uint8_t*>(codes.data), bits, rows, columns};
  return true;
}

bool ReadScale(const NodeView& node, int input, const char* name, size_t count,
               std::vector<float>* scale, Error* error) {
  if (!ReadConstant(node, input, name, scale, error)) return false;
  if (scale->size() == count) return true;
  return error->Set("`%s` has %zu elements, but must have %zu", name, scale->size(), count);
}

bool ReadScaling(int32_t value, Scaling most, Scaling* scaling, Error* error) {
  if (value < 0 || value > static_cast<int32_t>(most)) {
    return error->Set("`meta` has scaling %d, but must have 0 to %d", value,
                      static_cast<int>(most));
  }
  *scaling = static_cast<Scaling>(value);
  return true;
}

bool ReadX(const NodeView& node, int* index, Error* error) {
  *index = node.inputs->data[0];
  return CheckIndex(node, *index, "x", error) &&
         CheckType(node.tensors[*index], "x", tflite::kFloat32, error);
}

bool ReadOutput(const NodeView& node, tflite::Type type, int* index, Error* error) {
  *index = node.outputs->data[0];
  if (!CheckIndex(node, *index, "output", error) ||
      !CheckType(node.tensors[*index], "output", type, error)) {
    return false;
  }
  const Tensor& tensor = node.tensors[*index];
  if (tensor.allocation_type == tflite::kMmapRo ||
      tensor.allocation_type == tflite::kPersistentRo || tensor.is_variable) {
    return error->Set("`output` must not be a constant or a variable");
  }
  if (*index == node.inputs->data[0]) return error->Set("`output` is `x`");
  return true;
}

// OcsQuantize and OcsFakeQuantize.
class RoundOp final : public RowOp {
 public:
  static std::unique_ptr<RowOp> Parse(bool fake, const NodeView& node, Error* error) {
    const int inputs = fake ? 4 : 3;
    const int meta_input = inputs - 1;
    const auto type = fake ? tflite::kFloat32 : tflite::kInt8;
    std::vector<int32_t> meta;
    int x, output;
    if (!CheckCounts(node, inputs, inputs + 1, error) || !ReadX(node, &x, error) ||
        !ReadOutput(node, type, &output, error) ||
        !ReadMeta(node, meta_input, 4, 4, &meta, error)) {
      return nullptr;
    }
    const int32_t least = fake ? INT16_MIN : INT8_MIN, most = fake ? INT16_MAX : INT8_MAX;
    const int32_t low = meta[1], high = meta[2], zero_point = meta[3];
    if (low < least || high > most || low > high || zero_point < least || zero_point > most) {
      error->Set("`meta` has codes %d to %d and zero point %d, but codes must go up and all be in"
                 " %d to %d", low, high, zero_point, least, most);
      return nullptr;
    }
    auto op = std::make_unique<RoundOp>(x, output, type);
    if (!ReadConstant(node, 1, "inv_scale", &op->inv_scale_, error) ||
        (fake && !ReadScale(node, 2, "scale", op->inv_scale_.size(), &op->scale_, error)) ||
        !ReadCopies(node, meta_input + 1, &op->copies_, error)) {
      return nullptr;
    }
    op->low_ = low - zero_point;
    op->high_ = high - zero_point;
    op->zero_point_ = zero_point;
    return op;
  }

  using RowOp::RowOp;

  bool OutputChannels(size_t channels, size_t* output_channels, Error* error) const override {
    *output_channels = channels + copies_.size();
    if (inv_scale_.size() != 1 && inv_scale_.size() != *output_channels) {
      return error->Set("`inv_scale` has %zu elements, but must have 1 or %zu, as `x` has"
                        " channels and copies", inv_scale_.size(), *output_channels);
    }
    return CheckCopies(copies_, channels, error);
  }

  size_t Scratch(size_t) const override { return 0; }

  void Run(const float* x, size_t rows, size_t channels, float*, void* out) const override {
    const bool per_channel = inv_scale_.size() != 1;
    const Rounding rounding = {inv_scale_.data(), scale_.data(),  per_channel,
                               low_,              high_,          zero_point_,
                               copies_.data(),    copies_.size()};
    if (output_type == tflite::kInt8) {
      BestKernels().quantize(x, rows, channels, rounding, static_cast<int8_t*>(out));
    } else {
      BestKernels().fake_quantize(x, rows, channels, rounding, static_cast<float*>(out));
    }
  }

 private:
  std::vector<float> inv_scale_;
  std::vector<float> scale_;  // of OcsFakeQuantize only
  std::vector<int32_t> copies_;
  int32_t low_, high_, zero_point_;
};

class FullyConnectedOp final : public RowOp {
 public:
  static std::unique_ptr<RowOp> Parse(const NodeView& node, Error* error) {
    std::vector<int32_t> meta;
    int x, output;
    if (!CheckCounts(node, 4, 6, error) || !ReadX(node, &x, error) ||
        !ReadOutput(node, tflite::kFloat32, &output, error) ||
        !ReadMeta(node, 3, 6, 6, &meta, error)) {
      return nullptr;
    }
    const int32_t activation = meta[3];
    if (activation < 0 || activation > 2) {
      error->Set("`meta` has activation %d, but must have 0 to 2", activation);
      return nullptr;
    }
    if (meta[4] < 1 || meta[5] < 1) {
      error->Set("`meta` has %d outputs and %d channels, but must have 1 or more", meta[4],
                 meta[5]);
      return nullptr;
    }
    const auto rows = static_cast<size_t>(meta[4]);
    auto op = std::make_unique<FullyConnectedOp>(x, output, tflite::kFloat32);
    op->channels_ = static_cast<size_t>(meta[5]);
    Scaling scaling = Scaling::kTensor;
    if (!ReadScaling(meta[2], Scaling::kRow, &scaling, error) ||
        !ReadScale(node, 2, "scale", scaling == Scaling::kRow ? rows : 1, &op->scale_, error) ||
        !ReadCopies(node, 5, &op->copies_, error) ||
        !CheckCopies(op->copies_, op->channels_, error) ||
        !ReadCodes(node, 1, meta[1], rows, op->channels_ + op->copies_.size(), &op->packed_,
                   error)) {
      return nullptr;
    }
    op->scale_.resize(rows, op->scale_[0]);
    if (IsMissing(node, 4)) {
      op->bias_.resize(rows);
    } else if (!ReadScale(node, 4, "bias", rows, &op->bias_, error)) {
      return nullptr;
    }
    op->low_ = activation == 0 ? -kInfinity : 0.0f;
    op->high_ = activation == 2 ? 6.0f : kInfinity;
    return op;
  }

  using RowOp::RowOp;

  bool OutputChannels(size_t channels, size_t* output_channels, Error* error) const override {
    *output_channels = packed_.rows;
    if (channels == channels_) return true;
    return error->Set("`x` has %zu channels, but must have %zu", channels, channels_);
  }

  size_t Scratch(size_t) const override { return copies_.empty() ? 0 : packed_.columns; }

  void Run(const float* x, size_t rows, size_t, float* scratch, void* out) const override {
    if (!copies_.empty()) {
      Expand(x, rows, scratch);
      x = scratch;
    }
    auto* sums = static_cast<float*>(out);
    BestKernels().multiply(packed_, x, rows, sums);
    for (size_t b = 0; b < rows; ++b, sums += packed_.rows) {
      for (size_t r = 0; r < packed_.rows; ++r) {
        const float value = sums[r] * scale_[r] + bias_[r];
        sums[r] = std::min(std::max(value, low_), high_);  // in this order, NaN stays NaN
      }
    }
  }

 private:
  void Expand(const float* x, size_t rows, float* out) const {
    for (size_t b = 0; b < rows; ++b, x += channels_) {
      out = std::copy_n(x, channels_, out);
      for (const int32_t copy : copies_) *out++ = x[copy];
    }
  }

  size_t channels_ = 0;
  PackedCodes packed_ = {};
  std::vector<float> scale_;  // [rows of packed_]
  std::vector<float> bias_;   // likewise
  std::vector<int32_t> copies_;
  float low_, high_;
};

}  // namespace

bool Error::Set(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return false;
}

bool Multiply(size_t a, size_t b, size_t* product) {
  if (b != 0 && a > SIZE_MAX / b) return false;
  *product = a * b;
  return true;
}

bool IsOperator(std::string_view custom_name) {
  return custom_name == kDequantize || custom_name == kFullyConnected ||
         custom_name == kQuantize || custom_name == kFakeQuantize;
}

bool ParseDequantize(const NodeView& node, DequantizeOp* op, Error* error) {
  std::vector<int32_t> meta;
  if (!CheckCounts(node, 3, 4, error) || !ReadMeta(node, 2, 5, 4 + kMaxRank, &meta, error) ||
      !ReadOutput(node, tflite::kFloat32, &op->output, error) ||
      !ReadScaling(meta[2], Scaling::kColumn, &op->scaling, error)) {
    return false;
  }
  op->shape.assign(meta.begin() + 4, meta.end());
  op->elements = 1;
  for (const int32_t size : op->shape) {
    if (size < 1) return error->Set("`meta` has a dimension of %d, but must have 1 or more", size);
    if (!Multiply(op->elements, static_cast<size_t>(size), &op->elements)) {
      return error->Set("the shape in `meta` is too large");
    }
  }
  size_t bytes;
  if (!Multiply(op->elements, sizeof(float), &bytes)) {
    return error->Set("the shape in `meta` is too large");
  }
  if (meta[3] < 1 || op->elements % static_cast<size_t>(meta[3]) != 0) {
    return error->Set("`meta` has %d rows, which do not divide the %zu elements of its shape",
                      meta[3], op->elements);
  }
  const auto rows = static_cast<size_t>(meta[3]);
  const size_t columns = op->elements / rows;
  op->channels = static_cast<size_t>(op->shape.back());
  if (columns % op->channels != 0) {
    return error->Set("the last dimension in `meta`, %zu, does not divide the %zu columns",
                      op->channels, columns);
  }
  op->pixels = columns / op->channels;
  size_t packed_columns;
  if (!ReadCopies(node, 3, &op->copies, error) ||
      !CheckCopies(op->copies, op->channels, error)) {
    return false;
  }
  if (!Multiply(op->pixels, op->channels + op->copies.size(), &packed_columns)) {
    return error->Set("the shape in `meta` is too large for %zu copies", op->copies.size());
  }
  const size_t scales = op->scaling == Scaling::kTensor ? 1
                        : op->scaling == Scaling::kRow  ? rows
                                                        : columns;
  return ReadCodes(node, 0, meta[1], rows, packed_columns, &op->packed, error) &&
         ReadScale(node, 1, "scale", scales, &op->scale, error);
}

void DequantizeOp::Run(float* out) const {
  const MergedKernel kernel = {packed,        pixels,       channels, copies.data(),
                               copies.size(), scale.data(), scaling};
  DequantizeMerged(BestKernels(), kernel, out);
}

std::unique_ptr<RowOp> ParseRowOp(std::string_view custom_name, const NodeView& node,
                                  Error* error) {
  if (custom_name == kFullyConnected) return FullyConnectedOp::Parse(node, error);
  return RoundOp::Parse(custom_name == kFakeQuantize, node, error);
}

bool ReadActivation(const Tensor& x, Activation* activation, Error* error) {
  if (!CheckType(x, "x", tflite::kFloat32, error)) return false;
  if (x.dims == nullptr || x.dims->size < 1 || x.dims->data[x.dims->size - 1] < 1) {
    return error->Set("`x` must have one dimension or more, and one channel or more");
  }
  const int last = x.dims->size - 1;
  activation->channels = static_cast<size_t>(x.dims->data[last]);
  activation->rows = 1;
  bool fits = true;
  for (int i = 0; i < last && fits; ++i) {
    if (x.dims->data[i] < 0) return error->Set("`x` has a dimension of %d", x.dims->data[i]);
    fits = Multiply(activation->rows, static_cast<size_t>(x.dims->data[i]), &activation->rows);
  }
  size_t elements, bytes;
  if (!fits || !Multiply(activation->rows, activation->channels, &elements) ||
      !Multiply(elements, sizeof(float), &bytes) || bytes != x.bytes) {
    return error->Set("`x` has %zu bytes, which its dimensions do not give", x.bytes);
  }
  return true;
}

}  // namespace ocs
