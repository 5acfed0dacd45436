#include "core/random.h"

#include <cmath>
#include <numbers>

#include <xxhash.h>

namespace cadre {

PhiloxBlock Philox(const PhiloxBlock& counter, uint64_t key) {
  constexpr uint32_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57, kWeyl0 = 0x9E3779B9,
                     kWeyl1 = 0xBB67AE85;
  PhiloxBlock x = counter;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{kMul0} * x[0], p1 = uint64_t{kMul1} * x[2];
    x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return x;
}

RandomKey::RandomKey(uint64_t seed, std::string_view purpose)
    : key(XXH64(purpose.data(), purpose.size(), seed)) {}

PhiloxBlock RandomKey::Block(uint64_t index, uint64_t salt) const {
  return Philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                 static_cast<uint32_t>(salt), static_cast<uint32_t>(salt >> 32)},
                key);
}

uint64_t RandomKey::U64(uint64_t index, uint64_t salt) const {
  PhiloxBlock block = Block(index, salt);
  return (uint64_t{block[1]} << 32) | block[0];
}

double RandomKey::Uniform(uint64_t index, uint64_t salt) const {
  return static_cast<double>(U64(index, salt) >> 11) * 0x1p-53;
}

double RandomKey::Normal(uint64_t index, uint64_t salt) const {
  PhiloxBlock block = Block(index, salt);
  double u1 = (static_cast<double>(block[0]) + 0.5) * 0x1p-32;
  double u2 = static_cast<double>(block[1]) * 0x1p-32;
  return std::sqrt(-2.0 * std::log(u1)) * std::cos(2.0 * std::numbers::pi * u2);
}

}  // namespace cadre
