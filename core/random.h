// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as
// 1, 2, 3", SC 2011). A draw is a pure function of what it is for (seed, purpose, indices), never
// of a stream's state, so every thread count, layout and restart draws the same. Thread-safe: no
// state.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace cadre {

using PhiloxBlock = std::array<uint32_t, 4>;

PhiloxBlock Philox(const PhiloxBlock& counter, uint64_t key);

// What a draw is for. The purpose (a parameter's name, "dropout", "shuffle") is hashed with the
// seed into the key; the rest are the counter.
struct RandomKey {
  uint64_t key;

  RandomKey(uint64_t seed, std::string_view purpose);

  PhiloxBlock Block(uint64_t index, uint64_t salt = 0) const;
  uint64_t U64(uint64_t index, uint64_t salt = 0) const;
  double Uniform(uint64_t index, uint64_t salt = 0) const;  // [0, 1), 53 bits
  double Normal(uint64_t index, uint64_t salt = 0) const;   // standard normal, Box-Muller
};

}  // namespace cadre
