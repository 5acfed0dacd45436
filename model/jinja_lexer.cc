#include "model/jinja_lexer.h"

#include <algorithm>
#include <cctype>

#include "model/jinja_text.h"

namespace cadre::jinja {
namespace {

constexpr size_t kMaxSource = size_t{1} << 20;
constexpr std::string_view kBlank = " \t\n\r\f\v";

bool IsNameStart(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c); }

std::string NormalizeNewlines(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    bool crlf = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (crlf) continue;
    result.push_back(source[i] == '\r' ? '\n' : source[i]);
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < source_.size()) {
      size_t tag = NextTag(pos_);
      std::string_view data = source_.substr(pos_, tag - pos_);
      if (tag == source_.size()) {
        EmitData(data);
        break;
      }
      char kind = source_[tag + 1];
      EmitData(TrimBeforeTag(data, kind, tag));
      Advance(tag + 2);
      if (pos_ < source_.size() && (source_[pos_] == '-' || source_[pos_] == '+'))
        Advance(pos_ + 1);
      CADRE_RETURN_IF_ERROR(kind == '#' ? Comment() : Tag(kind));
    }
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  size_t NextTag(size_t from) const {
    for (size_t at = source_.find('{', from); at != std::string_view::npos;
         at = source_.find('{', at + 1)) {
      if (at + 1 < source_.size() &&
          std::string_view("{%#").find(source_[at + 1]) != std::string_view::npos) {
        return at;
      }
    }
    return source_.size();
  }

  std::string_view TrimBeforeTag(std::string_view data, char kind, size_t tag) const {
    char mark = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (mark == '-') {
      size_t last = data.find_last_not_of(kBlank);
      return last == std::string_view::npos ? std::string_view() : data.substr(0, last + 1);
    }
    if (kind == '{' || mark == '+') return data;
    size_t line = data.rfind('\n');
    if (line == std::string_view::npos && !line_starting_) return data;
    size_t begin = line == std::string_view::npos ? 0 : line + 1;
    bool blank = data.find_first_not_of(kBlank, begin) == std::string_view::npos;
    return blank ? data.substr(0, begin) : data;
  }

  void EmitData(std::string_view data) {
    if (!data.empty()) tokens_.push_back({TokenKind::kData, std::string(data), line_});
  }

  void Advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    pos_ = to;
  }

  // Moves past a tag's end of `width` characters and the white space that its mark takes.
  void EndTag(size_t end, size_t width, bool trim_newline) {
    char mark = end > 0 ? source_[end] : ' ';
    size_t next = end + width;
    if (mark == '-') {
      next = std::min(source_.find_first_not_of(kBlank, next), source_.size());
    } else if (mark != '+' && trim_newline && next < source_.size() && source_[next] == '\n') {
      ++next;
    }
    line_starting_ = source_[next - 1] == '\n';
    Advance(next);
  }

  absl::Status Comment() {
    size_t end = source_.find("#}", pos_);
    if (end == std::string_view::npos)
      return InvalidArgument("line {}: '{{#' is not closed", line_);
    bool marked = end > pos_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    EndTag(marked ? end - 1 : end, marked ? 3 : 2, true);
    return absl::OkStatus();
  }

  absl::Status Tag(char kind) {
    bool block = kind == '%';
    int begin_line = line_;
    size_t first = tokens_.size();
    tokens_.push_back({block ? TokenKind::kBlockBegin : TokenKind::kPrintBegin, "", line_});
    std::string_view closer = block ? "%}" : "}}";
    std::vector<char> open;
    while (true) {
      Advance(std::min(source_.find_first_not_of(kBlank, pos_), source_.size()));
      if (pos_ == source_.size()) {
        return InvalidArgument("line {}: '{{{}' is not closed", begin_line, kind);
      }
      std::string_view rest = source_.substr(pos_);
      bool marked = rest.size() > 2 && (rest[0] == '-' || rest[0] == '+');
      if (open.empty() && rest.substr(marked ? 1 : 0, 2) == closer) {
        tokens_.push_back({block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd, "", line_});
        EndTag(pos_, marked ? 3 : 2, block);
        break;
      }
      CADRE_RETURN_IF_ERROR(OneToken(&open));
    }
    bool raw = block && tokens_.size() == first + 3 && tokens_[first + 1].text == "raw" &&
               tokens_[first + 1].kind == TokenKind::kName;
    return raw ? Raw(first) : absl::OkStatus();
  }

  // {% raw %}: all up to {% endraw %} is text.
  absl::Status Raw(size_t first) {
    tokens_.resize(first);
    int begin_line = line_;
    for (size_t at = source_.find("{%", pos_); at != std::string_view::npos;
         at = source_.find("{%", at + 2)) {
      size_t name = at + 2;
      if (name < source_.size() && (source_[name] == '-' || source_[name] == '+')) ++name;
      name = std::min(source_.find_first_not_of(kBlank, name), source_.size());
      if (source_.substr(name, 6) != "endraw") continue;
      size_t end = std::min(source_.find_first_not_of(kBlank, name + 6), source_.size());
      bool marked = end < source_.size() && (source_[end] == '-' || source_[end] == '+');
      if (source_.substr(end + (marked ? 1 : 0), 2) != "%}") continue;
      EmitData(TrimBeforeTag(source_.substr(pos_, at - pos_), '%', at));
      EndTag(end, marked ? 3 : 2, true);
      return absl::OkStatus();
    }
    return InvalidArgument("line {}: raw is not closed by endraw", begin_line);
  }

  absl::Status OneToken(std::vector<char>* open) {
    char c = source_[pos_];
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < source_.size() && IsNamePart(source_[end])) ++end;
      return Push(TokenKind::kName, end);
    }
    if (IsDigit(c)) return Number();
    if (c == '\'' || c == '"') return String();
    static constexpr std::string_view kDouble[] = {"==", "!=", "<=", ">=", "//", "**"};
    for (std::string_view op : kDouble) {
      if (source_.substr(pos_, 2) == op) return Push(TokenKind::kOperator, pos_ + 2);
    }
    if (std::string_view("+-*/%~=<>|.,:()[]{}").find(c) == std::string_view::npos) {
      return InvalidArgument("line {}: unexpected character '{}'", line_, c);
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) {
        return InvalidArgument("line {}: unexpected '{}'", line_, c);
      }
      open->pop_back();
    }
    return Push(TokenKind::kOperator, pos_ + 1);
  }

  absl::Status Push(TokenKind kind, size_t end) {
    tokens_.push_back({kind, std::string(source_.substr(pos_, end - pos_)), line_});
    pos_ = end;
    return absl::OkStatus();
  }

  absl::Status Number() {
    size_t end = pos_;
    auto digits = [&] {
      while (end < source_.size() && (IsDigit(source_[end]) || source_[end] == '_')) ++end;
    };
    digits();
    bool is_float = false;
    if (end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end + 1 < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t sign = source_[end + 1] == '-' || source_[end + 1] == '+' ? 2 : 1;
      if (end + sign < source_.size() && IsDigit(source_[end + sign])) {
        is_float = true;
        end += sign;
        digits();
      }
    }
    return Push(is_float ? TokenKind::kFloat : TokenKind::kInteger, end);
  }

  absl::Status String() {
    char quote = source_[pos_];
    int line = line_;
    std::string text;
    size_t at = pos_ + 1;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] == '\\' && at + 1 < source_.size()) {
        at = Escape(at + 1, &text);
      } else {
        text.push_back(source_[at++]);
      }
    }
    if (at >= source_.size()) return InvalidArgument("line {}: a string is not closed", line);
    Advance(at + 1);
    tokens_.push_back({TokenKind::kString, std::move(text), line});
    return absl::OkStatus();
  }

  // Appends what the escape at `at` (behind the backslash) stands for; returns where it ends.
  size_t Escape(size_t at, std::string* text) {
    static constexpr std::string_view kFrom = "ntrbfav0\\'\"";
    static constexpr std::string_view kTo("\n\t\r\b\f\a\v\0\\'\"", 11);
    char c = source_[at];
    if (c == '\n') return at + 1;
    size_t width = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (width > 0) {
      uint32_t code_point = 0;
      size_t end = at + 1;
      for (; end < source_.size() && end - at <= width; ++end) {
        if (!std::isxdigit(static_cast<unsigned char>(source_[end]))) break;
        code_point = code_point * 16 + HexDigit(source_[end]);
      }
      bool surrogate = code_point >= 0xd800 && code_point < 0xe000;
      if (end - at == width + 1 && code_point < 0x110000 && !surrogate) {
        AppendUtf8(code_point, text);
        return end;
      }
    }
    size_t simple = kFrom.find(c);
    if (simple != std::string_view::npos) {
      text->push_back(kTo[simple]);
    } else {
      text->push_back('\\');
      text->push_back(c);
    }
    return at + 1;
  }

  static uint32_t HexDigit(char c) {
    return static_cast<uint32_t>(IsDigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
  }

  std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  if (source.size() > kMaxSource) {
    return InvalidArgument("{} bytes, at most {} allowed", source.size(), kMaxSource);
  }
  if (!IsValidUtf8(source)) return InvalidArgument("not valid UTF-8");
  std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace cadre::jinja
