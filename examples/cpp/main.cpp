// SPDX-License-Identifier: Apache-2.0
// Run a classifier on an array: `classify LIB.so INPUT.npy [OUTPUT.raw]` prints the five best classes of each picture.
//
// INPUT is what `tvm-involution run` takes as an array: C order, little endian, of the library's dtype; or raw numbers
// without a header (any other suffix), as many as one batch or several have. OUTPUT gets the logits, raw.
#include <tvm_involution.hpp>

#include <cmath>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <numeric>

namespace ti = tvm_involution;

// The array's bytes, and its shape where the file says it.
static std::pair<std::string, std::vector<int64_t>> read_array(const std::string& path, const std::string& dtype) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ti::Error("cannot read " + path + "; name a .npy file");
  std::string data{std::istreambuf_iterator<char>(file), {}};
  if (path.size() < 4 || path.substr(path.size() - 4) != ".npy") return {data, {}};
  if (data.size() < 12 || data.compare(0, 6, "\x93NUMPY"))
    throw ti::Error(path + " is no .npy file; save it with numpy.save");
  const bool old = data[6] == 1;
  size_t length = 0;
  for (int i = old ? 1 : 3; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(data[8 + i]);
  const size_t start = (old ? 10 : 12) + length;
  const std::string header = data.substr(0, std::min(start, data.size()));
  const std::map<std::string, std::string> types{{"float32", "<f4"}, {"float16", "<f2"}, {"bfloat16", "<u2"}};
  const auto type = types.find(dtype);
  if (type == types.end() || header.find("'" + type->second + "'") == std::string::npos ||
      header.find("False") == std::string::npos) {
    throw ti::Error(path + " must hold " + dtype + " in C order; convert it in numpy");
  }
  std::vector<int64_t> shape;
  const size_t open = header.find('(');
  std::istringstream sizes(header.substr(open + 1, header.find(')') - open - 1));
  for (std::string word; std::getline(sizes, word, ',');) {
    if (word.find_first_of("0123456789") != std::string::npos) shape.push_back(std::stoll(word));
  }
  return {data.substr(start), shape};
}

static float to_float(const void* data, const std::string& dtype, int64_t i) {
  if (dtype == "float32") return static_cast<const float*>(data)[i];
  const uint32_t bits = static_cast<const uint16_t*>(data)[i];
  uint32_t wide = bits << 16;  // bfloat16
  if (dtype == "float16") {
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const float mantissa = static_cast<float>(bits & 1023) / 1024;
    const float size = exponent ? std::ldexp(1 + mantissa, exponent - 15) : std::ldexp(mantissa, -14);
    return exponent == 31 ? (bits & 1023 ? NAN : INFINITY) : (bits >> 15 ? -size : size);
  }
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

int main(int count, char** words) {
  if (count < 3 || count > 4) {
    std::cerr << "usage: classify LIB.so INPUT.npy [OUTPUT.raw]\n";
    return 2;
  }
  try {
    ti::Network network(words[1]);
    const ti::TensorSpec input = network.inputs().at(0);
    auto [data, shape] = read_array(words[2], input.dtype);
    if (shape.empty()) {  // raw: as many pictures as there are numbers for
      const size_t one = ti::detail::bytes_of(ti::empty(input.shape_for(1), input.dtype));
      if (data.empty() || data.size() % one)
        throw ti::Error(std::string(words[2]) + " holds no whole pictures of " + std::to_string(one) + " bytes");
      shape = input.shape_for(static_cast<int64_t>(data.size() / one));
    }
    ti::Tensor x = ti::empty(shape, input.dtype);
    if (data.size() != ti::detail::bytes_of(x))
      throw ti::Error(std::string(words[2]) + " does not hold what its header says");
    std::memcpy(x.data_ptr(), data.data(), data.size());
    std::map<std::string, ti::Tensor> outputs = network.run({{input.name, x}});
    const ti::Tensor& logits = outputs.at(network.outputs().at(0).name);
    if (outputs.size() != 1 || logits.ndim() != 2)
      throw ti::Error(network.metadata().name + " is no classifier: it has no logits alone");
    const std::string dtype = ti::detail::dtype_of(logits);
    const int64_t classes = logits.size(1);
    for (int64_t picture = 0; picture < logits.size(0); ++picture) {
      std::vector<float> row;
      for (int64_t i = 0; i < classes; ++i) row.push_back(to_float(logits.data_ptr(), dtype, picture * classes + i));
      std::vector<size_t> order(row.size());
      std::iota(order.begin(), order.end(), size_t(0));
      std::stable_sort(order.begin(), order.end(), [&row](size_t a, size_t b) { return row[a] > row[b]; });
      double sum = 0;
      for (float value : row) sum += std::exp(static_cast<double>(value) - row[order[0]]);
      for (size_t i = 0; i < std::min<size_t>(5, order.size()); ++i) {
        const auto& names = network.metadata().classes;
        const std::string name = order[i] < names.size() ? names[order[i]] : "class " + std::to_string(order[i]);
        std::printf("%lld %zu %.4f %s\n", static_cast<long long>(picture), order[i],
                    std::exp(static_cast<double>(row[order[i]]) - row[order[0]]) / sum, name.c_str());
      }
    }
    if (count == 4) {
      std::ofstream file(words[3], std::ios::binary);
      file.write(static_cast<const char*>(logits.data_ptr()),
                 static_cast<std::streamsize>(ti::detail::bytes_of(logits)));
      if (!file.flush())
        throw ti::Error(std::string("cannot write ") + words[3] + "; name a file in a folder that exists and has room");
    }
  } catch (const ti::Error& error) {
    std::cerr << "classify: " << error.what() << "\n";
    return 2;
  }
}
