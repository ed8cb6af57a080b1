// The JSON of model files, read with limits: no depth or length is taken from the text on trust.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tdmpc2 {

// A file that cannot be a model; the message goes to the user. It never leaves the library.
class Refused : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

struct Json {
    enum Kind { NOTHING, TRUTH, NUMBER, TEXT, LIST, OBJECT };

    // The value of a key; null if there is none or this is no object.
    const Json* find(const char* key) const;
    // Throw Refused, with the name, if there is no such value.
    const Json& at(const char* key) const;
    long long integer(const char* key, long long least, long long most) const;
    const std::string& text_of(const char* key) const;

    Kind kind = NOTHING;
    double number = 0;  // of texts that are whole numbers below 2^53 exactly, of others nearly
    bool whole = false;
    std::string text;
    std::vector<Json> items;                             // of a list
    std::vector<std::pair<std::string, Json>> members;   // of an object, each key once
};

// Throws Refused.
Json parse_json(const char* begin, const char* end);

}  // namespace tdmpc2
