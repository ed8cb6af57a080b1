#include "json.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace tdmpc2 {
namespace {

constexpr int deepest = 16;

struct Parser {
    [[noreturn]] void refuse(const char* why) const {
        throw Refused(std::string("the header is damaged: ") + why + " at byte " + std::to_string(at - begin));
    }

    void skip_space() {
        while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    }

    bool take(char c) {
        skip_space();
        if (at >= end || *at != c) return false;
        at++;
        return true;
    }

    bool word(const char* expected) {
        const size_t length = std::strlen(expected);
        if (size_t(end - at) < length || std::memcmp(at, expected, length)) return false;
        at += length;
        return true;
    }

    Json value(int depth) {
        if (depth > deepest) refuse("too many brackets");
        skip_space();
        Json found;
        if (at >= end) refuse("it ends early");
        if (*at == '"') found.kind = Json::TEXT, found.text = string();
        else if (take('[')) list(found, depth);
        else if (take('{')) object(found, depth);
        else if (word("null")) found.kind = Json::NOTHING;
        else if (word("true")) found.kind = Json::TRUTH, found.number = 1;
        else if (word("false")) found.kind = Json::TRUTH;
        else number(found);
        return found;
    }

    void list(Json& found, int depth) {
        found.kind = Json::LIST;
        if (take(']')) return;
        do found.items.push_back(value(depth + 1));
        while (take(','));
        if (!take(']')) refuse("a list does not end");
    }

    void object(Json& found, int depth) {
        found.kind = Json::OBJECT;
        if (take('}')) return;
        std::vector<std::string> keys;
        do {
            skip_space();
            if (at >= end || *at != '"') refuse("a key is missing");
            std::string key = string();
            if (!take(':')) refuse("a value is missing");
            keys.push_back(key);
            found.members.emplace_back(std::move(key), value(depth + 1));
        } while (take(','));
        if (!take('}')) refuse("an object does not end");
        std::sort(keys.begin(), keys.end());
        if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) refuse("a key is there twice");
    }

    int digit() { return at < end && *at >= '0' && *at <= '9' ? *at++ - '0' : -1; }

    void number(Json& found) {
        found.kind = Json::NUMBER;
        const bool minus = at < end && *at == '-';
        at += minus;
        int d = digit(), digits = 0;
        if (d < 0) refuse("there is no value");
        double x = 0;
        for (; d >= 0; d = digit(), digits++) x = x * 10 + d;
        found.whole = digits <= 15;
        double scale = 1;
        if (at < end && *at == '.') {
            at++, found.whole = false;
            if ((d = digit()) < 0) refuse("a number does not end");
            for (; d >= 0; d = digit()) x = x * 10 + d, scale *= 10;
        }
        int exponent = 0;
        if (at < end && (*at == 'e' || *at == 'E')) {
            at++, found.whole = false;
            const bool below = at < end && *at == '-';
            at += at < end && (*at == '-' || *at == '+');
            if ((d = digit()) < 0) refuse("a number does not end");
            for (; d >= 0; d = digit()) exponent = std::min(exponent * 10 + d, 9999);
            if (below) exponent = -exponent;
        }
        found.number = (minus ? -x : x) / scale * std::pow(10.0, exponent);
    }

    unsigned four_digits() {
        unsigned code = 0;
        for (int i = 0; i < 4; i++, at++) {
            if (at >= end) refuse("a text does not end");
            const char c = *at;
            const int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (d < 0) refuse("a letter is damaged");
            code = code * 16 + unsigned(d);
        }
        return code;
    }

    void letter(std::string& to) {  // of \u, as UTF-8
        unsigned code = four_digits();
        if (code >= 0xd800 && code < 0xdc00) {
            if (!word("\\u")) refuse("half of a letter is missing");
            const unsigned second = four_digits();
            if (second < 0xdc00 || second > 0xdfff) refuse("half of a letter is missing");
            code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
        } else if (code >= 0xdc00 && code <= 0xdfff) {
            refuse("half of a letter is missing");
        }
        if (!code) refuse("a text holds a zero");
        if (code < 0x80) to += char(code);
        else if (code < 0x800) to += char(0xc0 | code >> 6), to += char(0x80 | (code & 63));
        else if (code < 0x10000)
            to += char(0xe0 | code >> 12), to += char(0x80 | (code >> 6 & 63)), to += char(0x80 | (code & 63));
        else
            to += char(0xf0 | code >> 18), to += char(0x80 | (code >> 12 & 63)), to += char(0x80 | (code >> 6 & 63)),
                to += char(0x80 | (code & 63));
    }

    std::string string() {
        std::string found;
        for (at++; at < end && *at != '"';) {
            const unsigned char c = static_cast<unsigned char>(*at++);
            if (c < 0x20) refuse("a text holds a control character");
            if (c != '\\') {
                found += char(c);
                continue;
            }
            if (at >= end) break;
            static const char names[] = "\"\\/bfnrt", letters[] = "\"\\/\b\f\n\r\t";
            const char name = *at++;
            if (name == 'u') letter(found);
            else if (const char* place = name ? std::strchr(names, name) : nullptr) found += letters[place - names];
            else refuse("a letter is damaged");
        }
        if (at >= end) refuse("a text does not end");
        at++;
        return found;
    }

    const char *const begin, *const end;
    const char* at;
};

}  // namespace

const Json* Json::find(const char* key) const {
    for (const auto& [name, value] : members)
        if (name == key) return &value;
    return nullptr;
}

const Json& Json::at(const char* key) const {
    const Json* found = find(key);
    if (!found) throw Refused(std::string("it does not say '") + key + "'");
    return *found;
}

long long Json::integer(const char* key, long long least, long long most) const {
    const Json& found = at(key);
    if (found.kind != NUMBER || !found.whole || found.number < double(least) || found.number > double(most))
        throw Refused(std::string("'") + key + "' is not a whole number from " + std::to_string(least) + " to " +
                      std::to_string(most));
    return static_cast<long long>(found.number);
}

const std::string& Json::text_of(const char* key) const {
    const Json& found = at(key);
    if (found.kind != TEXT) throw Refused(std::string("'") + key + "' is no text");
    return found.text;
}

Json parse_json(const char* begin, const char* end) {
    Parser parser{begin, end, begin};
    Json found = parser.value(0);
    parser.skip_space();
    if (parser.at != end) parser.refuse("it goes on after its end");
    return found;
}

}  // namespace tdmpc2
