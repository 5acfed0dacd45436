#include "serving/http/call_info.h"

#include <fmt/core.h>

#include <algorithm>
#include <random>

namespace cadre {
namespace {

bool IsHex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c == '0'; });
}

uint64_t RandomBase() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// splitmix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014).
uint64_t Mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

}  // namespace

std::string TraceContext::Header() const {
  return fmt::format("00-{}-{}-{}", trace_id, span_id, flags);
}

std::optional<TraceContext> ParseTraceParent(std::string_view header) {
  constexpr size_t kSize = 55;  // 00-<32>-<16>-<2>
  if (header.size() < kSize || header[2] != '-' || header[35] != '-' || header[52] != '-') {
    return std::nullopt;
  }
  const std::string_view version = header.substr(0, 2), trace = header.substr(3, 32),
                         parent = header.substr(36, 16), flags = header.substr(53, 2);
  if (!IsHex(version) || version == "ff") return std::nullopt;
  if (header.size() > kSize && (version == "00" || header[kSize] != '-')) return std::nullopt;
  if (!IsHex(trace) || !IsHex(parent) || !IsHex(flags) || IsZero(trace) || IsZero(parent)) {
    return std::nullopt;
  }
  return TraceContext{.trace_id = std::string(trace),
                      .parent_id = std::string(parent),
                      .flags = std::string(flags)};
}

bool IsRequestId(std::string_view text) {
  auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("._:=@/+-").find(c) != std::string_view::npos;
  };
  return !text.empty() && text.size() <= 128 && std::ranges::all_of(text, allowed);
}

IdSource::IdSource() : base_(RandomBase()) {}

std::string IdSource::RequestId() { return fmt::format("{:016x}-{:x}", base_, next_.fetch_add(1)); }

std::string IdSource::SpanId() {
  return fmt::format("{:016x}", Mix(base_ + next_.fetch_add(1) * 0x9e3779b97f4a7c15) | 1);
}

}  // namespace cadre
