// SPDX-License-Identifier: Apache-2.0
//
// Load and run the libraries of tvm-involution from C++17, as `tvm_involution.load` does from Python: the same checks,
// the same words where something is wrong, the same pool of threads, the same numbers to the bit.
//
//   tvm_involution::Network network("rednet50.so");
//   auto x = tvm_involution::empty({1, 3, 224, 224}, "float32");   // x.data_ptr() is aligned
//   auto outputs = network.run({{"input", x}});                     // by name
//   const float* logits = static_cast<const float*>(outputs.at("logits").data_ptr());
//
// Needs the headers and libraries of the wheels apache-tvm and apache-tvm-ffi: `tvm-involution config` says where they
// are. Linux, libraries for CPUs. Calls may come from several threads, and run one after another. What is wrong is
// thrown as `tvm_involution::Error`, a line that says what was wrong, what was expected and what to do.
//
// The file format is that of docs/library-format.md.
#ifndef TVM_INVOLUTION_HPP_
#define TVM_INVOLUTION_HPP_

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <tvm/ffi/tvm_ffi.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/runtime/base.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace tvm_involution {

using Tensor = tvm::ffi::Tensor;

// Wrong use or bad input: one line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An entry of a shape: a size, `K*batch` where it grows with the batch, or unknown (`?`) where it does in another way.
struct Dimension {
  int64_t size = 0;
  int64_t per_picture = 0;
  bool unknown = false;

  int64_t with_batch(int64_t batch) const { return per_picture ? per_picture * batch : size; }
  std::string text() const {
    if (unknown) return "?";
    if (!per_picture) return std::to_string(size);
    return per_picture == 1 ? "batch" : std::to_string(per_picture) + "*batch";
  }
};

using Shape = std::vector<Dimension>;

// An input or output.
struct TensorSpec {
  std::string name;
  Shape shape;
  std::string dtype;
  std::string layout;

  // The axis of the batch, -1 where the tensor is one for any batch.
  int batch_axis() const {
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      if (shape[axis].per_picture) return static_cast<int>(axis);
    }
    return -1;
  }
  std::vector<int64_t> shape_for(int64_t batch) const {
    std::vector<int64_t> sizes;
    for (const Dimension& d : shape) sizes.push_back(d.with_batch(batch));
    return sizes;
  }
};

// What the functions of one image size take and return; `image_size` is {0, 0} where there is but one.
struct Signature {
  std::array<int64_t, 2> image_size{0, 0};
  std::vector<TensorSpec> inputs, outputs;

  std::string function(int64_t batch) const {
    std::string name = "batch_" + std::to_string(batch);
    return image_size[0] ? name + "_" + std::to_string(image_size[0]) + "x" + std::to_string(image_size[1]) : name;
  }
};

struct WeightSpec {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t offset = 0, bytes = 0;
};

// What a library says about itself, as far as running it needs that; `json` has all.
struct Metadata {
  std::string name, task, device_type, triple, cpu, tvm_version, mixed_by, json;
  std::vector<std::string> cpu_features, classes;
  std::vector<int64_t> batch_sizes;
  std::vector<Signature> signatures;
  std::vector<WeightSpec> weights;
};

namespace detail {

namespace ffi = tvm::ffi;
namespace fs = std::filesystem;

constexpr char kMagic[] = "\x7ftvm-involution\n";
constexpr size_t kMagicSize = sizeof(kMagic) - 1, kFooterSize = 32 + 8 + kMagicSize, kChunk = 1 << 20;
constexpr int64_t kFormat = 2;
// TVM's kernels load whole vectors and assume allocations on this boundary
constexpr size_t kAlignment = 64;

inline std::string join(const std::vector<std::string>& words, const char* between) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += (i ? between : "") + words[i];
  return text;
}

// FIPS 180-4.
class Sha256 {
 public:
  void update(const unsigned char* data, size_t size) {
    total_ += size;
    while (size) {
      size_t taken = std::min(size, block_.size() - filled_);
      std::memcpy(block_.data() + filled_, data, taken);
      data += taken, size -= taken, filled_ += taken;
      if (filled_ == block_.size()) compress(), filled_ = 0;
    }
  }
  std::array<unsigned char, 32> digest() {
    uint64_t bits = total_ * 8;
    static const unsigned char padding[64] = {0x80};
    update(padding, (filled_ < 56 ? 56 : 120) - filled_);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    update(length, 8);
    std::array<unsigned char, 32> out;
    for (int i = 0; i < 32; ++i) out[i] = static_cast<unsigned char>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return out;
  }

 private:
  static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }
  void compress() {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      w[i] = uint32_t(block_[4 * i]) << 24 | uint32_t(block_[4 * i + 1]) << 16 | uint32_t(block_[4 * i + 2]) << 8 |
             block_[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    std::array<uint32_t, 8> s = state_;
    for (int i = 0; i < 64; ++i) {
      uint32_t one =
          s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      uint32_t two =
          (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {one + two, s[0], s[1], s[2], s[3] + one, s[4], s[5], s[6]};
    }
    for (int i = 0; i < 8; ++i) state_[i] += s[i];
  }

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> block_;
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

// One CPU of every physical core in the affinity mask, at most as many as the cgroup's quota pays for.
inline size_t physical_cores(const std::vector<int>& allowed) {
  std::set<std::string> cores;
  for (int cpu : allowed) {
    std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::ifstream package(folder + "physical_package_id"), core(folder + "core_id");
    std::string first, second;
    cores.insert(package >> first && core >> second ? first + "/" + second : "cpu " + std::to_string(cpu));
  }
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  long long period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    return std::min<size_t>(cores.size(), std::max(1LL, std::atoll(quota.c_str()) / period));
  }
  return cores.size();
}

inline std::vector<int> allowed_cpus() {
  std::vector<int> allowed;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &mask)) allowed.push_back(cpu);
    }
  }
  return allowed.empty() ? std::vector<int>{0} : allowed;
}

inline size_t thread_count(const std::vector<int>& allowed) {
  const char* set = std::getenv("TVM_NUM_THREADS");
  std::string text = set ? set : "";
  text.erase(0, text.find_first_not_of(" \t"));
  text.erase(text.find_last_not_of(" \t") + 1);
  size_t cores = physical_cores(allowed);
  if (text.empty()) return cores;
  bool digits = text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
  int wanted = digits ? std::atoi(text.c_str()) : 0;
  if (wanted < 1 || wanted > 1024) {
    throw Error("TVM_NUM_THREADS is '" + text.substr(0, 40) +
                "'; expected a whole number from 1 to 1024, or leave it unset to use the " + std::to_string(cores) +
                " cores");
  }
  return wanted;
}

// The one thread that runs all networks of the process: TVM has a pool of workers for each thread that calls it.
class Executor {
 public:
  static Executor& get() {
    static Executor* executor = new Executor;  // never destroyed: networks may outlive what is destroyed at exit
    return *executor;
  }
  template <typename Function>
  auto run(Function function) -> decltype(function()) {
    std::packaged_task<decltype(function())()> task(std::move(function));
    auto result = task.get_future();
    {
      std::lock_guard<std::mutex> guard(lock_);
      tasks_.push_back([&task] { task(); });
    }
    wake_.notify_one();
    return result.get();
  }

 private:
  Executor() {
    std::thread([this] {
      while (true) {
        std::function<void()> task;
        {
          std::unique_lock<std::mutex> guard(lock_);
          wake_.wait(guard, [this] { return !tasks_.empty(); });
          task = std::move(tasks_.front());
          tasks_.pop_front();
        }
        task();
      }
    }).detach();
  }
  std::mutex lock_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
};

// In the executor's thread: the pool's workers, free to move, asleep after a thousand yields without work.
inline void configure_pool() {
  static bool done = false;
  if (done) return;
  setenv("TVM_THREAD_POOL_SPIN_COUNT", "1000", 0);
  std::vector<int> allowed = allowed_cpus();
  size_t count = thread_count(allowed);
  // the runtime makes as many workers as CPUs are named, and uses `count` of them
  ffi::Array<ffi::String> names;
  for (size_t i = 0; i < std::max(count, allowed.size()); ++i)
    names.push_back(std::to_string(allowed[i % allowed.size()]));
  constexpr int kShareAllCores = -3;
  ffi::Function::GetGlobalRequired("runtime.config_threadpool")(kShareAllCores, static_cast<int>(count), names);
  done = true;
}

inline std::string last_line(const std::exception& error) {
  // what(): the message, then where it was thrown
  const auto* own = dynamic_cast<const ffi::Error*>(&error);
  std::istringstream lines(own ? own->message() : error.what());
  std::string line, last;
  while (std::getline(lines, line)) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) last = line.substr(line.find_first_not_of(" \t\r"));
  }
  return last.empty() ? "no message" : last;
}

inline std::string architecture(std::string name) {
  name = name.substr(0, name.find('-'));
  return name == "amd64" ? "x86_64" : name == "arm64" ? "aarch64" : name;
}

inline std::string this_architecture() {
  utsname found;
  return uname(&found) ? "unknown" : architecture(found.machine);
}

inline std::set<std::string> cpu_flags() {
  std::ifstream file("/proc/cpuinfo");
  // by architecture: emulators of user programs may show the host's file
  const std::string key = this_architecture() == "aarch64" ? "Features" : "flags";
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) == 0 && line.find(':') != std::string::npos) {
      std::istringstream words(line.substr(line.find(':') + 1));
      std::set<std::string> flags;
      for (std::string word; words >> word;) flags.insert(word);
      return flags;
    }
  }
  return {};
}

// Reads the metadata's JSON; throws std::exception where something is missing or of another type.
class MetadataReader {
 public:
  static Metadata read(const std::string& text, const std::string& path) {
    try {
      ffi::String problem;
      ffi::json::Value value = ffi::json::Parse(ffi::String(text), &problem);
      if (problem.size()) throw std::runtime_error(std::string(problem.data(), problem.size()));
      ffi::json::Object data = value.cast<ffi::json::Object>();
      if (int64_t format = number(field(data, "format")); format != kFormat) {
        throw Error(path + ": the library has format " + std::to_string(format) + ", this version reads " +
                    std::to_string(kFormat) + "; compile it again");
      }
      return fields(data, text);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error(path + ": the library's metadata is not as expected (" + last_line(error) + "); compile it again");
    }
  }

 private:
  using Value = ffi::json::Value;
  static Value field(const ffi::json::Object& data, const char* name) {
    auto found = data.find(ffi::String(name));
    if (found == data.end()) throw std::runtime_error(std::string("metadata lacks '") + name + "'");
    return (*found).second;
  }
  static int64_t number(const Value& value) { return value.cast<int64_t>(); }
  static std::string word(const Value& value) { return std::string(value.cast<ffi::String>()); }
  static ffi::json::Array list(const Value& value) { return value.cast<ffi::json::Array>(); }
  static std::vector<std::string> words(const Value& value) {
    std::vector<std::string> all;
    for (const Value& entry : list(value)) all.push_back(word(entry));
    return all;
  }
  static std::vector<int64_t> numbers(const Value& value) {
    std::vector<int64_t> all;
    for (const Value& entry : list(value)) all.push_back(number(entry));
    return all;
  }
  static Shape shape(const Value& value) {
    Shape sizes;
    for (const Value& entry : list(value)) {
      Dimension d;
      if (auto text = entry.try_cast<ffi::String>()) {
        std::string name(*text);
        d.unknown = name == "?";
        if (!d.unknown) d.per_picture = name == "batch" ? 1 : std::stoll(name);
      } else {
        d.size = number(entry);
      }
      sizes.push_back(d);
    }
    return sizes;
  }
  static std::vector<TensorSpec> specs(const Value& value) {
    std::vector<TensorSpec> all;
    for (const Value& entry : list(value)) {
      ffi::json::Object data = entry.cast<ffi::json::Object>();
      all.push_back({word(field(data, "name")), shape(field(data, "shape")), word(field(data, "dtype")),
                     word(field(data, "layout"))});
    }
    return all;
  }
  static std::vector<TensorSpec> shaped(std::vector<TensorSpec> specs, const Value& shapes) {
    ffi::json::Array all = list(shapes);
    if (all.size() != specs.size()) throw std::runtime_error("forms must have a shape for each tensor");
    for (size_t i = 0; i < specs.size(); ++i) specs[i].shape = shape(all[i]);
    return specs;
  }
  static Metadata fields(const ffi::json::Object& data, const std::string& text) {
    Metadata m;
    m.json = text;
    m.name = word(field(data, "name")), m.task = word(field(data, "task"));
    m.device_type = word(field(data, "device_type")), m.triple = word(field(data, "triple"));
    m.cpu = word(field(data, "cpu")), m.tvm_version = word(field(data, "tvm_version"));
    m.mixed_by = word(field(data, "mixed_by"));
    m.cpu_features = words(field(data, "cpu_features"));
    m.batch_sizes = numbers(field(data, "batch_sizes"));
    if (m.batch_sizes.empty() || m.batch_sizes[0] < 1 || !std::is_sorted(m.batch_sizes.begin(), m.batch_sizes.end())) {
      throw std::runtime_error("batch_sizes must ascend");
    }
    if (Value classes = field(data, "classes"); classes != nullptr) m.classes = words(classes);
    Signature first{{0, 0}, specs(field(data, "inputs")), specs(field(data, "outputs"))};
    for (const Value& entry : list(field(data, "forms"))) {
      ffi::json::Object form = entry.cast<ffi::json::Object>();
      std::vector<int64_t> size = numbers(field(form, "image_size"));
      if (size.size() != 2) throw std::runtime_error("forms must be of image sizes");
      m.signatures.push_back({{size[0], size[1]},
                              shaped(first.inputs, field(form, "inputs")),
                              shaped(first.outputs, field(form, "outputs"))});
    }
    if (m.signatures.empty()) m.signatures.push_back(first);
    for (const Value& entry : list(field(data, "weights"))) {
      ffi::json::Object weight = entry.cast<ffi::json::Object>();
      WeightSpec spec{word(field(weight, "dtype")), numbers(field(weight, "shape")), 0, 1};
      spec.offset = static_cast<uint64_t>(number(field(weight, "offset")));
      for (int64_t size : spec.shape) {
        if (size < 1 || static_cast<uint64_t>(size) > (uint64_t(1) << 31))
          throw std::runtime_error("weights must have sizes");
        spec.bytes *= static_cast<uint64_t>(size);
      }
      DLDataType dtype = ffi::StringToDLDataType(spec.dtype);
      spec.bytes *= (dtype.bits * dtype.lanes + 7) / 8;
      if (spec.offset % kAlignment ||
          (!m.weights.empty() && spec.offset < m.weights.back().offset + m.weights.back().bytes)) {
        throw std::runtime_error("weights must lie one behind the other, each on a boundary of 64 bytes");
      }
      m.weights.push_back(std::move(spec));
    }
    return m;
  }
};

// A file that is mapped, and stays open: who replaces it by renaming leaves this one as it is.
class MappedFile {
 public:
  MappedFile(std::string path, int file, const struct stat& state)
      : path_(std::move(path)), file_(file), state_(state) {
    check();
    size_ = static_cast<size_t>(state.st_size);
    // pages that are written to, which nobody does, would be copied
    data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_, 0);
    if (data_ == MAP_FAILED) {
      throw Error("cannot map " + path_ + ": " + std::strerror(errno) + "; copy it to a disk of this machine");
    }
  }
  ~MappedFile() {
    if (data_ != MAP_FAILED) munmap(data_, size_);
    close(file_);
  }
  MappedFile(const MappedFile&) = delete;
  char* data() const { return static_cast<char*>(data_); }
  void check() const {
    struct stat now;
    if (fstat(file_, &now) || now.st_size != state_.st_size || now.st_mtim.tv_sec != state_.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != state_.st_mtim.tv_nsec) {
      throw Error(path_ +
                  " was overwritten while it was in use; load it again, and replace libraries by renaming (mv), which "
                  "leaves the old one to those who use it");
    }
  }

 private:
  std::string path_;
  int file_;
  struct stat state_;
  size_t size_ = 0;
  void* data_ = MAP_FAILED;
};

// Memory of a file, in a tensor that keeps the file mapped.
struct MappedMemory {
  std::shared_ptr<MappedFile> file;
  uint64_t offset;
  void AllocData(DLTensor* tensor) { tensor->data = file->data() + offset; }
  void FreeData(DLTensor*) {}
};

struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    size_t bytes = std::max<size_t>(ffi::GetDataSize(*tensor), 1);
    tensor->data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (!tensor->data) throw Error("out of memory: no room for a tensor of " + std::to_string(bytes) + " bytes");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// A folder for the private copy of the code.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& path) {
    const char* set = std::getenv("TMPDIR");
    std::string parent = set && *set ? set : "/tmp";
    std::string name = parent + "/tvm-involution-XXXXXX";
    if (!mkdtemp(name.data())) {
      throw Error("cannot copy " + path + ": " + std::strerror(errno) + "; set TMPDIR to a folder with room");
    }
    name_ = name;
    struct statvfs found;
    if (!statvfs(name.c_str(), &found) && found.f_flag & ST_NOEXEC) {
      remove();
      throw Error("cannot load " + path + ": " + parent +
                  " is mounted noexec, so no code can be loaded from there; set "
                  "TMPDIR to a folder where programs may run");
    }
  }
  ~TemporaryFolder() { remove(); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::string& name() const { return name_; }

 private:
  void remove() {
    std::error_code ignored;
    fs::remove_all(name_, ignored);
  }
  std::string name_;
};

inline void read_exactly(int file, void* to, size_t size, uint64_t offset, const std::string& path) {
  for (char* place = static_cast<char*>(to); size;) {
    ssize_t got = pread(file, place, size, static_cast<off_t>(offset));
    if (got <= 0)
      throw Error("cannot read " + path + ": " + (got ? std::strerror(errno) : "it ends") +
                  "; copy it again or compile it again");
    place += got, size -= static_cast<size_t>(got), offset += static_cast<uint64_t>(got);
  }
}

struct OpenedLibrary {
  Metadata metadata;
  std::shared_ptr<MappedFile> file;
  std::unique_ptr<TemporaryFolder> folder;
  std::string code;
};

// Check the file's sum while its code is copied; map it.
inline OpenedLibrary open_library(const std::string& path) {
  OpenedLibrary library;
  struct stat state;
  if (stat(path.c_str(), &state) || !S_ISREG(state.st_mode)) {
    const char* what = fs::exists(path) ? "is no file" : "does not exist";
    throw Error("library " + path + " " + what + "; make one with `tvm-involution compile`");
  }
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error("cannot read " + path + ": " + std::strerror(errno) + "; check its permissions");
  struct Closer {
    int file;
    ~Closer() {
      if (file >= 0) close(file);
    }
  } closer{file};
  fstat(file, &state);
  const uint64_t size = static_cast<uint64_t>(state.st_size);
  std::string footer(kFooterSize, '\0');
  if (size >= kFooterSize) read_exactly(file, footer.data(), kFooterSize, size - kFooterSize, path);
  if (size < kFooterSize || footer.compare(40, kMagicSize, kMagic, kMagicSize)) {
    throw Error(path + " is no tvm-involution library, or is truncated; copy it again or compile it again");
  }
  const Error damaged(path + " is damaged (its SHA-256 does not match); copy it again or compile it again");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(footer[32 + i]);
  const uint64_t start = size - kFooterSize;
  if (length > start) throw damaged;
  std::string text(length, '\0');
  read_exactly(file, text.data(), length, start - length, path);
  // what cannot be read is refused when it is known not to be damaged
  std::optional<Error> problem;
  try {
    library.metadata = MetadataReader::read(text, path);
  } catch (const Error& error) {
    problem = error;
  }
  const auto& weights = library.metadata.weights;
  const uint64_t code_end = weights.empty() ? start - length : std::min(weights[0].offset, start - length);
  library.folder = std::make_unique<TemporaryFolder>(path);
  library.code = library.folder->name() + "/library.so";
  std::ofstream copy(library.code, std::ios::binary);
  Sha256 sum;
  std::vector<char> chunk(kChunk);
  for (uint64_t place = 0; place < start - length;) {
    size_t wanted = static_cast<size_t>(std::min<uint64_t>(kChunk, start - length - place));
    read_exactly(file, chunk.data(), wanted, place, path);
    sum.update(reinterpret_cast<unsigned char*>(chunk.data()), wanted);
    if (place < code_end)
      copy.write(chunk.data(), static_cast<std::streamsize>(std::min<uint64_t>(wanted, code_end - place)));
    place += wanted;
  }
  sum.update(reinterpret_cast<const unsigned char*>(text.data()), text.size());
  if (std::memcmp(sum.digest().data(), footer.data(), 32)) throw damaged;
  if (problem) throw *problem;
  copy.close();
  if (!copy) {
    throw Error("cannot copy " + path + " to " + library.folder->name() + ": " + std::strerror(errno) +
                "; make room there, or set TMPDIR to another folder");
  }
  if (!weights.empty()) {
    if (weights.back().offset + weights.back().bytes > start - length) {
      throw Error(path + " is damaged (it ends before its weights do); copy it again or compile it again");
    }
    closer.file = -1;
    library.file = std::make_shared<MappedFile>(path, file, state);
  }
  return library;
}

inline void check_runnable(const std::string& path, const Metadata& m) {
  if (m.device_type != "cpu") {
    throw Error(path + " was compiled for " + m.device_type +
                " and cannot run on cpu; compile it again with --target llvm");
  }
  if (architecture(m.triple) != this_architecture()) {
    throw Error(path + " was compiled for " + m.triple + ", this machine is " + this_architecture() +
                "; compile it with --target llvm here");
  }
  std::vector<std::string> missing;
  std::set<std::string> flags = cpu_flags();
  for (const std::string& feature : m.cpu_features) {
    if (!flags.empty() && !flags.count(feature)) missing.push_back(feature);
  }
  if (!missing.empty()) {
    throw Error(path + " was compiled for " + m.cpu + " and needs " + join(missing, ", ") +
                ", which this CPU lacks; compile it with --target llvm here");
  }
  auto minor = [](const std::string& version) { return version.substr(0, version.find('.', version.find('.') + 1)); };
  if (minor(m.tvm_version) != minor(TVM_VERSION)) {
    throw Error(path + " was compiled with TVM " + m.tvm_version + ", this is " + TVM_VERSION +
                "; install that version or compile the library again");
  }
}

// As few pictures as possible, then as few calls as possible, largest first; only the last call is padded.
inline std::vector<int64_t> split_batch(int64_t requested, const std::vector<int64_t>& sizes) {
  const int64_t largest = sizes.back(), bulk = std::max<int64_t>(0, requested / largest - largest);
  const int64_t rest = requested - bulk * largest;
  struct Best {
    int64_t pictures = 0, calls = 0, size = 0;
  };
  std::vector<Best> best(static_cast<size_t>(rest) + 1);
  for (int64_t count = 1; count <= rest; ++count) {
    Best found;
    for (int64_t size : sizes) {
      const Best& before = best[static_cast<size_t>(std::max<int64_t>(0, count - size))];
      Best option{before.pictures + size, before.calls + 1, size};
      if (!found.size || std::make_pair(option.pictures, option.calls) < std::make_pair(found.pictures, found.calls))
        found = option;
    }
    best[static_cast<size_t>(count)] = found;
  }
  std::vector<int64_t> split(static_cast<size_t>(bulk), largest);
  for (int64_t count = rest; count > 0; count -= best[static_cast<size_t>(count)].size)
    split.push_back(best[static_cast<size_t>(count)].size);
  std::sort(split.rbegin(), split.rend());
  return split;
}

inline std::string text_of(const std::vector<int64_t>& sizes) {
  std::vector<std::string> words;
  for (int64_t size : sizes) words.push_back(std::to_string(size));
  return "(" + join(words, ", ") + (words.size() == 1 ? ",)" : ")");
}

inline std::string text_of(const Shape& shape) {
  std::vector<std::string> words;
  for (const Dimension& d : shape) words.push_back(d.text());
  return "(" + join(words, ", ") + ")";
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  auto shape = tensor.shape();
  return {shape.begin(), shape.end()};
}

inline size_t bytes_of(const Tensor& tensor) { return ffi::GetDataSize(tensor); }

inline char* data_of(const Tensor& tensor) { return static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset(); }

inline std::string dtype_of(const Tensor& tensor) { return std::string(ffi::DLDataTypeToString(tensor.dtype())); }

inline Tensor allocate(const std::vector<int64_t>& shape, DLDataType dtype) {
  return Tensor::FromNDAlloc(AlignedMemory(), ffi::ShapeView(shape.data(), shape.size()), dtype, DLDevice{kDLCPU, 0});
}

// Entries [from, to) along an axis, in a tensor that has `size` of them; zeros behind.
inline Tensor part(const Tensor& tensor, int axis, int64_t from, int64_t to, int64_t size) {
  std::vector<int64_t> shape = sizes_of(tensor);
  size_t outer = 1, inner = bytes_of(tensor);
  for (int i = 0; i < axis; ++i) outer *= static_cast<size_t>(shape[i]);
  inner /= std::max<size_t>(1, outer * static_cast<size_t>(shape[axis]));
  const size_t own = static_cast<size_t>(shape[axis]) * inner, wanted = static_cast<size_t>(size) * inner;
  shape[axis] = size;
  Tensor result = allocate(shape, tensor.dtype());
  const size_t taken = static_cast<size_t>(to - from) * inner;
  for (size_t i = 0; i < outer; ++i) {
    char* row = data_of(result) + i * wanted;
    std::memcpy(row, data_of(tensor) + i * own + static_cast<size_t>(from) * inner, taken);
    std::memset(row + taken, 0, wanted - taken);
  }
  return result;
}

inline Tensor concatenate(const std::vector<Tensor>& parts, int axis) {
  std::vector<int64_t> shape = sizes_of(parts[0]);
  size_t outer = 1, total = 0;
  for (int i = 0; i < axis; ++i) outer *= static_cast<size_t>(shape[i]);
  shape[axis] = 0;
  for (const Tensor& each : parts) shape[axis] += each.size(axis), total += bytes_of(each) / std::max<size_t>(1, outer);
  Tensor result = allocate(shape, parts[0].dtype());
  size_t place = 0;
  for (const Tensor& each : parts) {
    size_t row = bytes_of(each) / std::max<size_t>(1, outer);
    for (size_t i = 0; i < outer; ++i) std::memcpy(data_of(result) + i * total + place, data_of(each) + i * row, row);
    place += row;
  }
  return result;
}

inline bool overlap(const Tensor& a, const Tensor& b) {
  return data_of(a) < data_of(b) + bytes_of(b) && data_of(b) < data_of(a) + bytes_of(a);
}

inline Tensor copy(const Tensor& tensor) {
  Tensor result = allocate(sizes_of(tensor), tensor.dtype());
  std::memcpy(data_of(result), data_of(tensor), bytes_of(tensor));
  return result;
}

}  // namespace detail

// A tensor in aligned memory, its values not set. Throws Error: no such dtype, a negative size, no room.
inline Tensor empty(const std::vector<int64_t>& shape, const std::string& dtype) {
  if (std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 0; })) {
    throw Error("a tensor has sizes of at least 0, got " + detail::text_of(shape));
  }
  DLDataType type;
  try {
    type = tvm::ffi::StringToDLDataType(dtype);
  } catch (const std::exception&) {
    throw Error("there is no dtype '" + dtype + "'; expected such as float32");
  }
  return detail::allocate(shape, type);
}

// A loaded library. It may be moved, not copied; outputs outlive it.
class Network {
 public:
  // Throws Error: the file is missing, damaged or for another machine, or TVM_NUM_THREADS is no number.
  explicit Network(const std::string& path) {
    detail::OpenedLibrary library = detail::open_library(path);
    metadata_ = std::make_shared<Metadata>(std::move(library.metadata));
    file_ = library.file;
    detail::check_runnable(path, *metadata_);
    state_ = std::make_unique<State>();
    try {
      detail::Executor::get().run([&] { start(library.code); });
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error("cannot load " + path + ": " + detail::last_line(error) + "; compile it again on this machine");
    }
  }
  Network(Network&&) = default;
  Network& operator=(Network&&) = delete;
  ~Network() {
    if (!state_) return;
    detail::Executor::get().run([this] {
      state_.reset();
      // what it computed in, which the runtime keeps for the next call of any network
      if (auto clear = tvm::ffi::Function::GetGlobal("vm.builtin.memory_manager.clear")) (*clear)();
    });
  }

  const Metadata& metadata() const { return *metadata_; }
  // Of the library's first image size.
  const std::vector<TensorSpec>& inputs() const { return metadata_->signatures[0].inputs; }
  const std::vector<TensorSpec>& outputs() const { return metadata_->signatures[0].outputs; }

  // Run the network: an input for each of `inputs()`, in that order, for a batch of at least 1; the outputs in theirs.
  std::vector<Tensor> operator()(const std::vector<Tensor>& given) {
    const Signature& signature = choose(given);
    const int64_t batch = check(signature, given);
    const auto& sizes = metadata_->batch_sizes;
    if (std::find(sizes.begin(), sizes.end(), batch) != sizes.end()) return call(signature, batch, given);
    std::vector<std::vector<Tensor>> pieces(signature.outputs.size());
    int64_t position = 0;
    for (int64_t size : detail::split_batch(batch, sizes)) {
      const int64_t taken = std::min(size, batch - position);
      std::vector<Tensor> parts;
      for (size_t i = 0; i < given.size(); ++i) {
        const int axis = signature.inputs[i].batch_axis();
        const int64_t k = axis < 0 ? 0 : signature.inputs[i].shape[axis].per_picture;
        parts.push_back(axis < 0 ? given[i]
                                 : detail::part(given[i], axis, position * k, (position + taken) * k, size * k));
      }
      std::vector<Tensor> returned = call(signature, size, parts);
      for (size_t i = 0; i < returned.size(); ++i) {
        const int axis = signature.outputs[i].batch_axis();
        const int64_t k = axis < 0 ? 0 : signature.outputs[i].shape[axis].per_picture;
        pieces[i].push_back(axis < 0 || taken == size ? returned[i]
                                                      : detail::part(returned[i], axis, 0, taken * k, taken * k));
      }
      position += taken;
    }
    std::vector<Tensor> results;
    for (size_t i = 0; i < pieces.size(); ++i) {
      const int axis = signature.outputs[i].batch_axis();
      results.push_back(axis < 0 || pieces[i].size() == 1 ? pieces[i][0] : detail::concatenate(pieces[i], axis));
    }
    return results;
  }

  // The same by name.
  std::map<std::string, Tensor> run(const std::map<std::string, Tensor>& given) {
    std::vector<std::string> names;
    std::vector<Tensor> ordered;
    for (const TensorSpec& spec : inputs()) {
      names.push_back(spec.name);
      if (auto found = given.find(spec.name); found != given.end()) ordered.push_back(found->second);
    }
    if (ordered.size() != inputs().size() || given.size() != inputs().size()) {
      std::vector<std::string> got;
      for (const auto& [name, tensor] : given) got.push_back(name);
      throw Error(metadata_->name + " takes " + std::to_string(names.size()) + " inputs (" + detail::join(names, ", ") +
                  "), got " + std::to_string(given.size()) + " (" + detail::join(got, ", ") + ")");
    }
    std::vector<Tensor> returned = (*this)(ordered);
    std::map<std::string, Tensor> results;
    for (size_t i = 0; i < returned.size(); ++i) results.emplace(outputs()[i].name, returned[i]);
    return results;
  }

 private:
  // Tells outputs in memory of their own: what the first call returned is held until the second; what that returns at
  // the same place the library keeps, because memory that is held is given to nobody else.
  struct Fresh {
    bool called = false;
    std::vector<Tensor> held;
    std::set<size_t> kept;
  };
  // What is used in the executor's thread.
  struct State {
    std::map<std::string, tvm::ffi::Function> functions;
    std::map<std::string, Fresh> fresh;
  };

  void start(const std::string& code) {
    namespace ffi = tvm::ffi;
    detail::configure_pool();
    // by the functions of the C interface, whose errors cross between C++ runtimes
    ffi::Module module = ffi::Function::GetGlobalRequired("ffi.ModuleLoadFromFile")(code).cast<ffi::Module>();
    ffi::Module machine = function(module, "vm_load_executable")().cast<ffi::Module>();
    constexpr int kPooled = 2;
    function(machine, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooled);
    std::vector<ffi::Any> given{ffi::String(), ffi::String(), true};
    for (const WeightSpec& weight : metadata_->weights) {
      given.push_back(Tensor::FromNDAlloc(detail::MappedMemory{file_, weight.offset},
                                          ffi::ShapeView(weight.shape.data(), weight.shape.size()),
                                          ffi::StringToDLDataType(weight.dtype), DLDevice{kDLCPU, 0}));
    }
    for (const Signature& signature : metadata_->signatures) {
      for (int64_t size : metadata_->batch_sizes) {
        const std::string name = signature.function(size), bound = name + " with weights";
        if (!metadata_->weights.empty()) {
          given[0] = ffi::String(name), given[1] = ffi::String(bound);
          ffi::Any ignored;
          std::vector<ffi::AnyView> views(given.begin(), given.end());
          function(machine, "save_function").CallPacked(views.data(), static_cast<int>(views.size()), &ignored);
        }
        state_->functions.emplace(name, function(machine, metadata_->weights.empty() ? name : bound));
        state_->fresh.emplace(name, Fresh());
      }
    }
  }

  static tvm::ffi::Function function(const tvm::ffi::Module& module, const std::string& name) {
    auto found = module->GetFunction(tvm::ffi::String(name), false);
    if (!found.has_value()) throw std::runtime_error("it has no function " + name);
    return found.value();
  }

  const Signature& choose(const std::vector<Tensor>& given) const {
    const auto& specs = inputs();
    if (given.size() != specs.size()) {
      std::vector<std::string> names;
      for (const TensorSpec& spec : specs) names.push_back(spec.name);
      throw Error(metadata_->name + " takes " + std::to_string(specs.size()) + " inputs (" + detail::join(names, ", ") +
                  "), got " + std::to_string(given.size()));
    }
    const auto& signatures = metadata_->signatures;
    if (signatures.size() == 1) return signatures[0];
    size_t position = 0;
    for (const Signature& signature : signatures) {
      size_t fits = 0;
      while (fits < given.size() && shape_fits(signature.inputs[fits], given[fits])) ++fits;
      if (fits == given.size()) return signature;
      position = std::max(position, fits);
    }
    std::vector<std::string> shapes;
    bool apart = false;
    for (const Signature& signature : signatures) {
      std::string text = detail::text_of(signature.inputs[position].shape);
      if (std::find(shapes.begin(), shapes.end(), text) == shapes.end()) shapes.push_back(text);
      apart = apart || shape_fits(signature.inputs[position], given[position]);
    }
    throw Error("input '" + specs[position].name + "' must have shape " + detail::join(shapes, " or ") +
                (apart ? " beside the other inputs" : "") + ", got " +
                detail::text_of(detail::sizes_of(given[position])));
  }

  static bool shape_fits(const TensorSpec& spec, const Tensor& tensor) {
    std::vector<int64_t> sizes = detail::sizes_of(tensor);
    if (sizes.size() != spec.shape.size()) return false;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (static_cast<int>(i) != spec.batch_axis() && sizes[i] != spec.shape[i].size) return false;
    }
    return true;
  }

  int64_t check(const Signature& signature, const std::vector<Tensor>& given) const {
    const auto& sizes = metadata_->batch_sizes;
    int64_t batch = sizes[0];
    for (size_t i = 0; i < given.size(); ++i) {
      if (const int axis = signature.inputs[i].batch_axis(); axis >= 0) {
        batch = given[i].ndim() > axis ? given[i].size(axis) / signature.inputs[i].shape[axis].per_picture : 0;
        break;
      }
    }
    for (size_t i = 0; i < given.size(); ++i) {
      const TensorSpec& spec = signature.inputs[i];
      const std::vector<int64_t> shape = detail::sizes_of(given[i]);
      if (shape != spec.shape_for(batch) || batch < 1) {
        throw Error("input '" + spec.name + "' must have shape " + detail::text_of(spec.shape) +
                    (spec.batch_axis() >= 0 ? " with a batch of at least 1" : "") + ", got " + detail::text_of(shape));
      }
      if (const std::string dtype = detail::dtype_of(given[i]); dtype != spec.dtype) {
        throw Error("input '" + spec.name + "' must be " + spec.dtype + ", got " + dtype + "; convert it");
      }
      if (given[i].device().device_type != kDLCPU || !given[i].IsContiguous()) {
        throw Error("input '" + spec.name + "' must be contiguous memory of the CPU; copy it");
      }
    }
    if (!metadata_->mixed_by.empty() && std::find(sizes.begin(), sizes.end(), batch) == sizes.end()) {
      std::vector<std::string> words;
      for (int64_t size : sizes) words.push_back(std::to_string(size));
      throw Error(metadata_->name + " takes batches of " + detail::join(words, " or ") + " alone, got " +
                  std::to_string(batch) + "; compile it for that with --batch (why it cannot be served by others: " +
                  metadata_->mixed_by + ")");
    }
    return batch;
  }

  std::vector<Tensor> call(const Signature& signature, int64_t size, const std::vector<Tensor>& given) {
    try {
      return detail::Executor::get().run([&] { return call_in_turn(signature, size, given); });
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error(metadata_->name + " stopped: " + detail::last_line(error) +
                  "; where memory is short free some, otherwise compile it again");
    }
  }

  std::vector<Tensor> call_in_turn(const Signature& signature, int64_t size, const std::vector<Tensor>& given) {
    namespace ffi = tvm::ffi;
    if (file_) file_->check();
    std::vector<Tensor> aligned;
    for (const Tensor& tensor : given) {
      const bool fits =
          reinterpret_cast<uintptr_t>(detail::data_of(tensor)) % detail::kAlignment == 0 && !tensor.byte_offset();
      aligned.push_back(fits ? tensor : detail::copy(tensor));
    }
    std::vector<ffi::AnyView> views(aligned.begin(), aligned.end());
    const std::string name = signature.function(size);
    ffi::Any returned;
    state_->functions.at(name).CallPacked(views.data(), static_cast<int>(views.size()), &returned);
    std::vector<Tensor> results;
    if (auto one = returned.as<Tensor>()) {
      results.push_back(*one);
    } else {
      for (const ffi::Any& each : returned.cast<ffi::Array<ffi::Any>>()) results.push_back(each.cast<Tensor>());
    }
    bool as_said = results.size() == signature.outputs.size();
    for (size_t i = 0; as_said && i < results.size(); ++i) {
      const TensorSpec& spec = signature.outputs[i];
      const bool unknown =
          std::any_of(spec.shape.begin(), spec.shape.end(), [](const Dimension& d) { return d.unknown; });
      as_said = detail::dtype_of(results[i]) == spec.dtype &&
                (unknown || detail::sizes_of(results[i]) == spec.shape_for(size));
    }
    if (!as_said) throw Error(metadata_->name + " answers with what its metadata do not say; compile it again");
    return own(state_->fresh.at(name), results, aligned);
  }

  static std::vector<Tensor> own(Fresh& fresh, const std::vector<Tensor>& results, const std::vector<Tensor>& given) {
    if (fresh.called && !fresh.held.empty()) {
      for (size_t i = 0; i < results.size(); ++i) {
        for (const Tensor& held : fresh.held) {
          if (detail::overlap(results[i], held)) fresh.kept.insert(i);
        }
      }
      fresh.held.clear();
    }
    const bool first = !fresh.called;
    if (first) fresh.called = true, fresh.held = results;
    std::vector<Tensor> taken = given, owned;
    for (size_t i = 0; i < results.size(); ++i) {
      bool shared = first || fresh.kept.count(i);
      for (const Tensor& other : taken) shared = shared || detail::overlap(results[i], other);
      taken.push_back(results[i]);
      owned.push_back(shared ? detail::copy(results[i]) : results[i]);
    }
    return owned;
  }

  std::shared_ptr<Metadata> metadata_;
  std::shared_ptr<detail::MappedFile> file_;
  std::unique_ptr<State> state_;
};

}  // namespace tvm_involution

#endif  // TVM_INVOLUTION_HPP_
