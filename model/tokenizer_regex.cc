#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tokenizer_regex.h"

#include <pcre2.h>

#include "core/status.h"

namespace cadre {
namespace {

constexpr size_t kMaxPattern = 64 * 1024;
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kDepthLimit = 10'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr size_t kJitStackStart = 32 * 1024, kJitStackMax = 4 * 1024 * 1024;

// Oniguruma's \s is Unicode's White_Space; PCRE2's also holds U+180E.
constexpr std::string_view kSpaceRanges =
    "\\t-\\r "
    "\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr std::string_view kWordRanges = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";

bool IsHexDigit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

// Appends the translation of the escape at pattern[i] == '\\' and returns the offset behind it.
size_t TranslateEscape(std::string_view pattern, size_t i, bool in_class, std::string* out) {
  const char kind = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
  const auto set = [&](std::string_view ranges, bool negated) {
    if (in_class) {
      *out += ranges;
    } else {
      (*out += negated ? "[^" : "[").append(ranges) += ']';
    }
  };
  if (kind == 's') return set(kSpaceRanges, false), i + 2;
  if (kind == 'w') return set(kWordRanges, false), i + 2;
  if (kind == 'h') return set("0-9a-fA-F", false), i + 2;
  if (!in_class && kind == 'S') return set(kSpaceRanges, true), i + 2;
  if (!in_class && kind == 'W') return set(kWordRanges, true), i + 2;
  if (kind == 'u' && i + 6 <= pattern.size()) {
    const std::string_view digits = pattern.substr(i + 2, 4);
    bool hex = true;
    for (const char c : digits) hex = hex && IsHexDigit(c);
    if (hex) {
      (*out += "\\x{").append(digits) += '}';
      return i + 6;
    }
  }
  *out += pattern.substr(i, 2);
  return i + 2;
}

absl::StatusOr<std::string> Translate(std::string_view pattern, const std::string& where) {
  std::string out;
  bool in_class = false;
  size_t class_start = 0;
  for (size_t i = 0; i < pattern.size();) {
    const char c = pattern[i];
    if (c == '\\') {
      i = TranslateEscape(pattern, i, in_class, &out);
      continue;
    }
    if (in_class && pattern.substr(i, 2) == "&&") {
      return Unimplemented("{}: pattern \"{}\": an intersection (&&) in a character class", where,
                           pattern);
    }
    if (!in_class && c == '[') {
      in_class = true;
      class_start = i + (pattern.substr(i + 1, 1) == "^" ? 2 : 1);
    } else if (in_class && pattern.substr(i, 2) == "[:") {
      // A POSIX class: copied whole, since its ']' does not end the set.
      if (const size_t close = pattern.find(":]", i + 2); close != std::string_view::npos) {
        out += pattern.substr(i, close + 2 - i);
        i = close + 2;
        continue;
      }
    } else if (in_class && c == ']' && i != class_start) {
      in_class = false;
    }
    out.push_back(c);
    ++i;
  }
  return out;
}

}  // namespace

struct RegexScratch::Memory {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);

  Memory() {
    CADRE_CHECK(data != nullptr && context != nullptr, "out of memory");
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_depth_limit(context, kDepthLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Memory() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
};

RegexScratch::RegexScratch() : memory_(std::make_unique<Memory>()) {}
RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern, const std::string& where) {
  if (pattern.size() > kMaxPattern) {
    return InvalidArgument("{}: a pattern of {} bytes; at most {} are allowed", where,
                           pattern.size(), kMaxPattern);
  }
  CADRE_ASSIGN_OR_RETURN(const std::string translated, Translate(pattern, where));
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  // Oniguruma's ^ and $ stand for line borders; \C would leave the matcher inside a character.
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &error, &offset, context.get());
  if (code->code == nullptr) {
    unsigned char message[200];
    pcre2_get_error_message(error, message, sizeof message);
    return InvalidArgument("{}: pattern \"{}\" does not compile: {} (at byte {})", where, pattern,
                           reinterpret_cast<const char*>(message), offset);
  }
  code->jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  return Regex(std::move(code));
}

bool Regex::Find(std::string_view text, size_t from, RegexScratch& scratch, size_t* begin,
                 size_t* end) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
  RegexScratch::Memory& memory = *scratch.memory_;
  const int found = code_->jit ? pcre2_jit_match(code_->code, subject, text.size(), from,
                                                 PCRE2_NO_UTF_CHECK, memory.data, memory.context)
                               : pcre2_match(code_->code, subject, text.size(), from,
                                             PCRE2_NO_UTF_CHECK, memory.data, memory.context);
  if (found < 0) return false;
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(memory.data);
  // \K in a look-ahead can set a start behind the end.
  if (offsets[0] > offsets[1] || offsets[0] < from) return false;
  *begin = offsets[0];
  *end = offsets[1];
  return true;
}

}  // namespace cadre
