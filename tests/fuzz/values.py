"""Values that few programs expect, by the format that they are written in."""

from __future__ import annotations

import onnx

STRINGS = [
    *("", " ", "\0", "\n", "\r", "\t", "a\nb", "\x1b[2J", "\x85", "\u2028", "\u200b", "\ufeff"),
    *("\u202e", "\ufdd0", "\ud800", "\udfff\ud800", "e\u0301", "\u00e9", "\u0661", "\u212a", "\ufffd"),
    *("\U0001f600", "\U0010ffff", "\x7f", "NaN", "inf", "null", "true", "no", "0", "1.0", "-1", "007"),
    *("1e999", "2020-01-01", "=1+1", "#", "a#b", "~", "..", "/", "../a", "/dev/zero", "a/b", "C:\\a"),
    *("a::b", "*", "[", "{}", "%s", "{0}", "<b>&", "|", ",", ";", '"', "a" * 300, "a" * 100_000),
    *("\u00e9" * 70_000, "a " * 50_000, "a\n" * 3_000, "__class__", "text", "label"),
]  # fmt: skip
INTEGERS = [0, 1, -1, 2, 3, 7, 127, 128, 255, 65_536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1]
INTEGERS += [2**63 - 1, -(2**63), 2**63, 2**64, 10**30]
ENCODINGS = [
    "cp1252",
    "utf-16",
    "UTF32",
    "utf-16-be",
    "utf-7",
    "cp932",
    "gb18030",
    "punycode",
    "idna",
    "ascii",
]
ENCODINGS += ["unicode_escape", "raw_unicode_escape", "iso2022_jp", "cp037", "latin-1", "utf-8-sig"]
NUMBERS = [
    *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e-400", "5e-324", "1.7e308", "0.1", "-0.0"),
    *("1.0", "9" * 5_000, "0." + "1" * 5_000, "1E400", "1" + "0" * 400),
]  # fmt: skip
CONTAINERS = ["null", "true", "false", "[]", "{}", "[[]]", "[{}]", '{"": null}', '{"a": 1, "a": 2}', "[null]"]
CONTAINERS += ["[" * n + "]" * n for n in (70, 500, 100_000)]
CONTAINERS += ['{"a":' * n + "1" + "}" * n for n in (70, 5_000)]
CONTAINERS += ["[" + "1," * 5_000 + "1]", "{" + ",".join(f'"k{i}": {i}' for i in range(3_000)) + "}"]
PIECES = [
    *(text.encode("utf-8", "surrogatepass") for text in STRINGS if len(text) < 1_000),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\x80" * 12, b'"', b"'", b'""', b"\\", b'\\"', b"\\N", b",,,", b";", b"\t", b"\r\n", b"\r"),
    *(b"sep=;\n", b"\x1a", b"\0" * 9, b"[" * 3_000, b'{"a":' * 3_000, b'"\\ud800"', b'"\\u0000"'),
    *(b"NaN", b"1e999", b"9" * 5_000, b"-", b"//", b"&a", b"*a", b"<<: "),
    *(b"!!python/object:os.system ", b"!!binary ", b"!!float ", b"!!set ", b"? ", b": ", b"- ", b"|"),
    *(b"%YAML 1.1\n---\n", b"\n---\n", b"\n...\n", b"{", b"}", b"]", b"0x_", b"0o9", b"1_0"),
    *(b"2001-99-99", b".inf"),
]  # fmt: skip
TEXTS = [
    *("", " ", "thanks", "where is my parcel " * 60, "\0\x1b[2J a", "e\u0301 \u200b\ufeffİ"),
    *("包裹😀\U0010ffff\ufdd0", "[CLS] [SEP][MASK] <s></s>", "a" * 3_000, "a b " * 500),
    *("\u202e\u0661\u2028b", "▁a ##s Ġ", "-".join("abc" * 9)),
]  # fmt: skip
COMPONENTS = [  # of a tokenizer.json
    '{"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}',
    '{"type": "Replace", "pattern": {"Regex": "("}, "content": "b"}',
    '{"type": "Replace", "pattern": {"String": ""}, "content": "a"}',
    '{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}',
    '{"type": "Prepend", "prepend": "aaaa"}',
    '{"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAAAAAAA"}',
    '{"type": "Precompiled", "precompiled_charsmap": ""}',
    *(
        f'{{"type": "{name}"}}'
        for name in ("NFD", "NFKC", "Nmt", "Lowercase", "StripAccents", "ByteLevel", "Fuse")
    ),
    '{"type": "Strip", "strip_left": true, "strip_right": true}',
    '{"type": "Sequence", "normalizers": []}',
    '{"type": "Sequence", "pretokenizers": []}',
    '{"type": "Sequence", "processors": []}',
    '{"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": true}',
    '{"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": false}',
    '{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}',
    '{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}',
    '{"type": "UnicodeScripts"}',
    '{"type": "CharDelimiterSplit", "delimiter": "a"}',
    '{"type": "FixedLength", "length": 0}',
    '{"type": "BertProcessing", "sep": ["[SEP]", 3000000000], "cls": ["[CLS]", 299]}',
    '{"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}',
    '{"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 9}',
    '{"strategy": {"Fixed": 4000000000}, "direction": "Left", "pad_to_multiple_of": 0,'
    ' "pad_id": 0, "pad_type_id": 0,'
    ' "pad_token": "[PAD]"}',
    '{"id": 4000000000, "content": "a", "single_word": false, "lstrip": true, "rstrip": true,'
    ' "normalized": true,'
    ' "special": false}',
    '{"type": "BPE", "dropout": 1.5, "unk_token": null, "continuing_subword_prefix": "#",'
    ' "end_of_word_suffix": "",'
    ' "fuse_unk": true, "byte_fallback": true, "ignore_merges": true, "vocab": {}, "merges": ["a a"]}',
    '{"type": "Unigram", "unk_id": 9, "vocab": [["a", 1e308], ["b", -1e308], ["", 0]],'
    ' "byte_fallback": true}',
    '{"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "b"}',
    '{"type": "WordPiece", "unk_token": "", "continuing_subword_prefix": "",'
    ' "max_input_chars_per_word": 0, "vocab":'
    ' {"a": 299, "": 1}}',
]
YAML = [
    *("!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2001-01-01"),
    *("2001-01-01", "!x y", "&a [*a]", "*b", "&a {<<: *a}", "{<<: {name: x}}", "{? [a]: b}"),
    *("{? {a: b}: c}", "!!int 1_0", "0o17", "0x_", "1:30", "!!float nan", ".inf", "-.inf", "~"),
    *("!!null x", "!!bool maybe", "!!python/name:os.system", "'", "[a", "{a: b", "@", "`", "!!str 1"),
    *("!!merge <<", "=", "<<", "!!map [a]", "!!seq {a: b}", "!!int 99999999999999999999"),
    *("!!float 1e999999",),
]  # fmt: skip
GRAPH_WORDS = [schema.name for schema in onnx.defs.get_all_schemas()]
GRAPH_WORDS += [
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "logits_intent",
    "logits_flags",
    "all_logits",
    "mask",
]
GRAPH_WORDS += [
    "embedded",
    "eight",
    "rows",
    "ones",
    "split",
    "length",
    "com.microsoft",
    "ai.onnx.ml",
    "location",
]
XML = [
    b'<c r="XFD1048576"><v>1</v></c>',
    b'<row r="1048576">',
    b'<row r="99999999999999999999">',
    b'<row r="-1">',
    b'<c t="s"><v>99</v></c>',
    b'<c t="e"><v>#N/A</v></c>',
    b'<c t="b"><v>x</v></c>',
    b'<c t="d"><v>2001-99-99</v></c>',
    b'<c t="n"><v>1e999</v></c>',
    b"<v>nan</v>",
    b"&#0;",
    b"&#xD800;",
    b"&a;",
    b"<!--",
    b"<f>A1</f>",
    b'<mergeCell ref="A1:XFD1048576"/>',
    b'<dimension ref="A1:XFD1048576"/>',
    b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
]
