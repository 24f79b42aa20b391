// A JSON reader for the header of a policy file, and for nothing else: RFC 8259, read in place.
//
// It builds no tree. The caller walks the text in the order it wants, so memory does not grow with
// what a hostile header holds: a string is stored only up to a length that the caller names, nesting
// is bounded by kMaxDepth, and the keys of a skipped object by kMaxKeys. No exception but bad_alloc,
// no locale. The fuzzer's seeds reach every line (ci/native.sh fuzz).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sorl::json {

constexpr int kMaxDepth = 61;  // config, one level down, may then have 60
constexpr int kMaxKeys = 256;

enum class Kind { object, array, string, number, boolean, null, invalid };

/// Walks one JSON text. Every function returns false after the first error, which `error` describes.
class Reader {
 public:
  Reader(const char* text, std::size_t size) : begin_(text), at_(text), end_(text + size) {}

  /// What the next value is, judged by its first character; nothing is consumed.
  Kind kind();

  /// Reads an object: `member(key)` is called behind each colon and must read one value.
  /// Duplicate keys are the caller's to refuse (`skip` does). Keys are at most 256 bytes.
  template <class F>
  bool object(F&& member) {
    if (!open('{')) return false;
    std::string key;
    for (bool first = true; !close('}'); first = false) {
      if (!separator(first) || !string(key, kMaxKeyBytes) || !punctuation(':') || !member(key)) {
        return fail("an object is broken");
      }
    }
    return leave();
  }

  /// Reads an array: `element()` is called before each element and must read one value.
  template <class F>
  bool array(F&& element) {
    if (!open('[')) return false;
    for (bool first = true; !close(']'); first = false) {
      if (!separator(first) || !element()) return fail("an array is broken");
    }
    return leave();
  }

  /// Reads a string of at most `max_bytes` bytes of UTF-8 into `out`.
  bool string(std::string& out, std::size_t max_bytes) { return text(&out, max_bytes); }

  /// Reads a number as the nearest double; one that would become infinite, or 0 by underflow, is
  /// refused.
  bool number(double& out);

  /// Reads a number without fraction and exponent.
  bool integer(std::int64_t& out);

  /// Reads true or false.
  bool boolean(bool& out);

  /// Reads any value, whole and valid, and forgets it. Objects with a duplicate key are refused.
  bool skip();

  /// True when nothing but white space is left.
  bool finish();

  /// Position in bytes from the start of the text, and back: a value can be read again later.
  std::size_t tell() const { return static_cast<std::size_t>(at_ - begin_); }
  void seek(std::size_t position) { at_ = begin_ + position; }

  /// Notes the first error (later ones are its consequences) and returns false.
  bool fail(const std::string& what);

  const std::string& error() const { return error_; }

 private:
  static constexpr std::size_t kMaxKeyBytes = 256;

  void space();
  bool open(char bracket);
  bool close(char bracket);
  bool leave();
  bool separator(bool first);
  bool punctuation(char c);
  bool literal(const char* word);
  bool text(std::string* out, std::size_t max_bytes);
  bool number_text(const char*& first, const char*& last, bool& whole);
  bool escape(std::uint32_t& code);
  bool hex4(std::uint32_t& code);
  bool utf8(std::uint32_t& code);

  const char* begin_;
  const char* at_;
  const char* end_;
  int depth_ = 0;
  std::string error_;
};

}  // namespace sorl::json
