#include "parse.h"

#include <cstdarg>
#include <cstdint>
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

// a * b, unless that does not fit.
bool Multiply(size_t a, size_t b, size_t* product) {
  if (b != 0 && a > SIZE_MAX / b) return false;
  *product = a * b;
  return true;
}

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
bool ParseRound(bool fake, const NodeView& node, RowOp* row_op, Error* error) {
  const int inputs = fake ? 4 : 3;
  const int meta_input = inputs - 1;
  const auto type = fake ? tflite::kFloat32 : tflite::kInt8;
  std::vector<int32_t> meta;
  if (!CheckCounts(node, inputs, inputs + 1, error) || !ReadX(node, &row_op->x, error) ||
      !ReadOutput(node, type, &row_op->output, error) ||
      !ReadMeta(node, meta_input, 4, 4, &meta, error)) {
    return false;
  }
  const int32_t least = fake ? INT16_MIN : INT8_MIN, most = fake ? INT16_MAX : INT8_MAX;
  const int32_t low = meta[1], high = meta[2], zero_point = meta[3];
  if (low < least || high > most || low > high || zero_point < least || zero_point > most) {
    return error->Set("`meta` has codes %d to %d and zero point %d, but codes must go up and all"
                      " be in %d to %d", low, high, zero_point, least, most);
  }
  RoundOp& op = row_op->op.emplace<RoundOp>();
  op.fake = fake;
  op.low = low - zero_point;
  op.high = high - zero_point;
  op.zero_point = zero_point;
  return ReadConstant(node, 1, "inv_scale", &op.inv_scale, error) &&
         (!fake || ReadScale(node, 2, "scale", op.inv_scale.size(), &op.scale, error)) &&
         ReadCopies(node, meta_input + 1, &op.copies, error);
}

bool ParseFullyConnected(const NodeView& node, RowOp* row_op, Error* error) {
  std::vector<int32_t> meta;
  if (!CheckCounts(node, 4, 6, error) || !ReadX(node, &row_op->x, error) ||
      !ReadOutput(node, tflite::kFloat32, &row_op->output, error) ||
      !ReadMeta(node, 3, 6, 6, &meta, error)) {
    return false;
  }
  const int32_t activation = meta[3];
  if (activation < 0 || activation > 2) {
    return error->Set("`meta` has activation %d, but must have 0 to 2", activation);
  }
  if (meta[4] < 1 || meta[5] < 1) {
    return error->Set("`meta` has %d outputs and %d channels, but must have 1 or more", meta[4],
                      meta[5]);
  }
  const auto rows = static_cast<size_t>(meta[4]);
  FullyConnectedOp& op = row_op->op.emplace<FullyConnectedOp>();
  op.channels = static_cast<size_t>(meta[5]);
  Scaling scaling = Scaling::kTensor;
  if (!ReadScaling(meta[2], Scaling::kRow, &scaling, error) ||
      !ReadScale(node, 2, "scale", scaling == Scaling::kRow ? rows : 1, &op.scale, error) ||
      !ReadCopies(node, 5, &op.copies, error) || !CheckCopies(op.copies, op.channels, error) ||
      !ReadCodes(node, 1, meta[1], rows, op.channels + op.copies.size(), &op.packed, error)) {
    return false;
  }
  op.scale.resize(rows, op.scale[0]);
  if (IsMissing(node, 4)) {
    op.bias.resize(rows);
  } else if (!ReadScale(node, 4, "bias", rows, &op.bias, error)) {
    return false;
  }
  op.low = activation == 0 ? -kInfinity : 0.0f;
  op.high = activation == 2 ? 6.0f : kInfinity;
  return true;
}

// Reads rows and channels of the input of a RowOp.
bool ReadX(const Tensor& x, RowSizes* sizes, Error* error) {
  if (!CheckType(x, "x", tflite::kFloat32, error)) return false;
  if (x.dims == nullptr || x.dims->size < 1 || x.dims->data[x.dims->size - 1] < 1) {
    return error->Set("`x` must have one dimension or more, and one channel or more");
  }
  const int last = x.dims->size - 1;
  sizes->channels = static_cast<size_t>(x.dims->data[last]);
  sizes->rows = 1;
  bool fits = true;
  for (int i = 0; i < last && fits; ++i) {
    if (x.dims->data[i] < 0) return error->Set("`x` has a dimension of %d", x.dims->data[i]);
    fits = Multiply(sizes->rows, static_cast<size_t>(x.dims->data[i]), &sizes->rows);
  }
  size_t elements, bytes;
  if (!fits || !Multiply(sizes->rows, sizes->channels, &elements) ||
      !Multiply(elements, sizeof(float), &bytes) || bytes != x.bytes) {
    return error->Set("`x` has %zu bytes, which its dimensions do not give", x.bytes);
  }
  return true;
}

// What an operator makes of each row.
struct RowResult {
  size_t channels;
  size_t channel_bytes;
  size_t scratch;  // floats
};

bool ReadRow(const RoundOp& op, size_t channels, RowResult* result, Error* error) {
  const size_t width = channels + op.copies.size();
  *result = {width, op.fake ? sizeof(float) : sizeof(int8_t), 0};
  if (op.inv_scale.size() != 1 && op.inv_scale.size() != width) {
    return error->Set("`inv_scale` has %zu elements, but must have 1 or %zu, as `x` has channels"
                      " and copies", op.inv_scale.size(), width);
  }
  return CheckCopies(op.copies, channels, error);
}

bool ReadRow(const FullyConnectedOp& op, size_t channels, RowResult* result, Error* error) {
  *result = {op.packed.rows, sizeof(float), op.copies.empty() ? 0 : op.packed.columns};
  if (channels == op.channels) return true;
  return error->Set("`x` has %zu channels, but must have %zu", channels, op.channels);
}

}  // namespace

bool Error::Set(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return false;
}

bool IsOperator(std::string_view custom_name) {
  return custom_name == kDequantize || custom_name == kFullyConnected ||
         custom_name == kQuantize || custom_name == kFakeQuantize;
}

bool CheckOrder(const std::vector<NodeView>& nodes, Error* error) {
  if (nodes.empty()) return true;
  std::vector<bool> is_due(nodes[0].tensors_size);  // some node is still to make it
  const auto set_outputs = [&](const NodeView& node, bool value) {
    for (int i = 0; node.outputs != nullptr && i < node.outputs->size; ++i) {
      const auto output = static_cast<size_t>(node.outputs->data[i]);
      if (output < is_due.size()) is_due[output] = value;
    }
  };
  for (const NodeView& node : nodes) set_outputs(node, true);
  for (const NodeView& node : nodes) {
    for (int i = 0; node.inputs != nullptr && i < node.inputs->size; ++i) {
      const auto input = static_cast<size_t>(node.inputs->data[i]);
      if (input < is_due.size() && is_due[input]) {
        return error->Set("The operators are not in order: tensor %d is read before it is made.",
                          node.inputs->data[i]);
      }
    }
    set_outputs(node, false);
  }
  return true;
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

bool ParseRowOp(const NodeView& node, RowOp* op, Error* error) {
  if (node.name == kFullyConnected) return ParseFullyConnected(node, op, error);
  return ParseRound(node.name == kFakeQuantize, node, op, error);
}

bool ReadSizes(const RowOp& op, const Tensor& x, RowSizes* sizes, Error* error) {
  RowResult row;
  const auto read_row = [&](const auto& of_rows) {
    return ReadRow(of_rows, sizes->channels, &row, error);
  };
  if (!ReadX(x, sizes, error) || !std::visit(read_row, op.op)) return false;
  sizes->output_channels = row.channels;
  size_t elements;
  if (row.channels > INT32_MAX || !Multiply(sizes->rows, row.channels, &elements) ||
      !Multiply(elements, row.channel_bytes, &sizes->output_bytes) ||
      !Multiply(sizes->rows, row.scratch, &sizes->scratch)) {
    return error->Set("`x` is too large");
  }
  return true;
}

}  // namespace ocs
