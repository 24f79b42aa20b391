#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <system_error>
#include <vector>

namespace sorl::json {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, std::uint32_t code) {
  const auto byte = [&out](std::uint32_t value) { out.push_back(static_cast<char>(value)); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xC0 | code >> 6);
    byte(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    byte(0xE0 | code >> 12);
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  } else {
    byte(0xF0 | code >> 18);
    byte(0x80 | (code >> 12 & 0x3F));
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  }
}

}  // namespace

bool Reader::fail(const std::string& what) {
  if (error_.empty()) error_ = what + " at byte " + std::to_string(tell());
  return false;
}

void Reader::space() {
  while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
}

Kind Reader::kind() {
  space();
  if (at_ == end_) return Kind::invalid;
  switch (*at_) {
    case '{': return Kind::object;
    case '[': return Kind::array;
    case '"': return Kind::string;
    case 't':
    case 'f': return Kind::boolean;
    case 'n': return Kind::null;
    default: return *at_ == '-' || is_digit(*at_) ? Kind::number : Kind::invalid;
  }
}

bool Reader::punctuation(char c) {
  space();
  if (at_ == end_ || *at_ != c) return fail(std::string("expected '") + c + "'");
  ++at_;
  return true;
}

bool Reader::open(char bracket) {
  if (!error_.empty() || !punctuation(bracket)) return false;
  if (++depth_ > kMaxDepth) return fail("nested deeper than 61");
  return true;
}

// True at the closing bracket, which stays for leave(), so that an error inside ends the loop too.
bool Reader::close(char bracket) {
  space();
  return at_ != end_ && *at_ == bracket;
}

bool Reader::leave() {
  ++at_;
  --depth_;
  return true;
}

bool Reader::separator(bool first) { return first || punctuation(','); }

bool Reader::literal(const char* word) {
  space();
  const std::size_t length = std::strlen(word);
  if (static_cast<std::size_t>(end_ - at_) < length || std::memcmp(at_, word, length) != 0) {
    return fail(std::string("expected ") + word);
  }
  at_ += length;
  return true;
}

bool Reader::hex4(std::uint32_t& code) {
  code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    if (at_ == end_) return fail("a \\u escape is cut off");
    const char c = *at_;
    const char lower = static_cast<char>(c | 0x20);
    if (is_digit(c)) {
      code = code * 16 + static_cast<std::uint32_t>(c - '0');
    } else if (lower >= 'a' && lower <= 'f') {
      code = code * 16 + static_cast<std::uint32_t>(lower - 'a' + 10);
    } else {
      return fail("a \\u escape has a character that is no hexadecimal digit");
    }
  }
  return true;
}

// Behind a backslash.
bool Reader::escape(std::uint32_t& code) {
  if (at_ == end_) return fail("an escape is cut off");
  switch (*at_++) {
    case '"': code = '"'; return true;
    case '\\': code = '\\'; return true;
    case '/': code = '/'; return true;
    case 'b': code = '\b'; return true;
    case 'f': code = '\f'; return true;
    case 'n': code = '\n'; return true;
    case 'r': code = '\r'; return true;
    case 't': code = '\t'; return true;
    case 'u': break;
    default: return fail("unknown escape");
  }
  if (!hex4(code)) return false;
  if (code >= 0xDC00 && code <= 0xDFFF) return fail("a low surrogate stands alone");
  if (code < 0xD800 || code > 0xDBFF) return true;
  std::uint32_t low = 0;
  if (end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return fail("a high surrogate stands alone");
  at_ += 2;
  if (!hex4(low)) return false;
  if (low < 0xDC00 || low > 0xDFFF) return fail("a high surrogate stands alone");
  code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  return true;
}

// One character from two to four raw bytes; over-long forms and surrogates are refused.
bool Reader::utf8(std::uint32_t& code) {
  const auto lead = static_cast<unsigned char>(*at_);
  const int extra = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
  if (lead < 0xC2 || lead > 0xF4 || end_ - at_ <= extra) return fail("not UTF-8");
  code = lead & (0x3Fu >> extra);
  for (int i = 1; i <= extra; ++i) {
    const auto next = static_cast<unsigned char>(at_[i]);
    if ((next & 0xC0) != 0x80) return fail("not UTF-8");
    code = code << 6 | (next & 0x3Fu);
  }
  const std::uint32_t least = extra == 3 ? 0x10000 : extra == 2 ? 0x800 : 0x80;
  if (code < least || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return fail("not UTF-8");
  at_ += extra + 1;
  return true;
}

// Stores nothing where `out` is null.
bool Reader::text(std::string* out, std::size_t max_bytes) {
  if (out != nullptr) out->clear();
  if (!punctuation('"')) return false;
  for (;;) {
    if (at_ == end_) return fail("a string is cut off");
    const char c = *at_;
    if (static_cast<unsigned char>(c) < 0x20) return fail("a control character in a string");
    std::uint32_t code = 0;
    if (c == '"') {
      ++at_;
      return true;
    }
    if (c == '\\') {
      ++at_;
      if (!escape(code)) return false;
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      if (!utf8(code)) return false;
    } else {
      ++at_;
      code = static_cast<unsigned char>(c);
    }
    if (out == nullptr) continue;
    append_utf8(*out, code);
    if (out->size() > max_bytes) {
      return fail("a string is longer than " + std::to_string(max_bytes) + " bytes");
    }
  }
}

// RFC 8259's grammar: -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?
bool Reader::number_text(const char*& first, const char*& last, bool& whole) {
  space();
  const auto digits = [this] {
    const char* from = at_;
    while (at_ != end_ && is_digit(*at_)) ++at_;
    return at_ != from;
  };
  first = at_;
  whole = true;
  if (at_ != end_ && *at_ == '-') ++at_;
  const bool leading_zero = at_ != end_ && *at_ == '0';
  const char* from = at_;
  if (!digits() || (leading_zero && at_ - from > 1)) return fail("expected a number");
  if (at_ != end_ && *at_ == '.') {
    ++at_;
    whole = false;
    if (!digits()) return fail("a number has no digit behind its point");
  }
  if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
    ++at_;
    whole = false;
    if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
    if (!digits()) return fail("a number has no digit in its exponent");
  }
  last = at_;
  return true;
}

bool Reader::number(double& out) {
  const char* first = nullptr;
  const char* last = nullptr;
  bool whole = false;
  if (!number_text(first, last, whole)) return false;
  if (std::from_chars(first, last, out).ec != std::errc()) return fail("a number out of range");
  return true;
}

bool Reader::integer(std::int64_t& out) {
  const char* first = nullptr;
  const char* last = nullptr;
  bool whole = false;
  if (!number_text(first, last, whole)) return false;
  if (!whole) return fail("expected an integer");
  if (std::from_chars(first, last, out).ec != std::errc()) return fail("an integer out of range");
  return true;
}

bool Reader::boolean(bool& out) {
  if (kind() != Kind::boolean) return fail("expected true or false");
  out = *at_ == 't';
  return literal(out ? "true" : "false");
}

bool Reader::skip() {
  const char* first = nullptr;
  const char* last = nullptr;
  bool whole = false;
  double value = 0;
  bool truth = false;
  switch (kind()) {
    case Kind::object: {
      std::vector<std::string> keys;
      return object([&](const std::string& key) {
        if (std::find(keys.begin(), keys.end(), key) != keys.end()) {
          return fail("the key \"" + key + "\" stands twice in one object");
        }
        if (keys.size() == static_cast<std::size_t>(kMaxKeys)) {
          return fail("an object has more than 256 keys");
        }
        keys.push_back(key);
        return skip();
      });
    }
    case Kind::array: return array([&] { return skip(); });
    case Kind::string: return text(nullptr, 0);
    case Kind::number: {
      // An integer may have any length; a fraction must be a finite double.
      const std::size_t start = tell();
      if (!number_text(first, last, whole)) return false;
      if (whole) return true;
      seek(start);
      return number(value);
    }
    case Kind::boolean: return boolean(truth);
    case Kind::null: return literal("null");
    case Kind::invalid: break;
  }
  return fail("expected a value");
}

bool Reader::finish() {
  space();
  return at_ == end_ || fail("something follows the end");
}

}  // namespace sorl::json
