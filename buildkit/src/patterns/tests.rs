//! The tables of moby's own tests, and properties.

use super::*;
use proptest::prelude::*;

/// Pattern, path, whether it matches: `TestMatches` of moby/patternmatcher v0.6.1.
const MATCHES: &[(&str, &str, bool)] = &[
    ("**", "file", true),
    ("**", "file/", true),
    ("**/", "file", true),
    ("**/", "file/", true),
    ("**", "/", true),
    ("**/", "/", true),
    ("**", "dir/file", true),
    ("**/", "dir/file", true),
    ("**", "dir/file/", true),
    ("**/", "dir/file/", true),
    ("**/**", "dir/file", true),
    ("**/**", "dir/file/", true),
    ("dir/**", "dir/file", true),
    ("dir/**", "dir/file/", true),
    ("dir/**", "dir/dir2/file", true),
    ("dir/**", "dir/dir2/file/", true),
    ("**/dir", "dir", true),
    ("**/dir", "dir/file", true),
    ("**/dir2/*", "dir/dir2/file", true),
    ("**/dir2/*", "dir/dir2/file/", true),
    ("**/dir2/**", "dir/dir2/dir3/file", true),
    ("**/dir2/**", "dir/dir2/dir3/file/", true),
    ("**file", "file", true),
    ("**file", "dir/file", true),
    ("**/file", "dir/file", true),
    ("**file", "dir/dir/file", true),
    ("**/file", "dir/dir/file", true),
    ("**/file*", "dir/dir/file", true),
    ("**/file*", "dir/dir/file.txt", true),
    ("**/file*txt", "dir/dir/file.txt", true),
    ("**/file*.txt", "dir/dir/file.txt", true),
    ("**/file*.txt*", "dir/dir/file.txt", true),
    ("**/**/*.txt", "dir/dir/file.txt", true),
    ("**/**/*.txt2", "dir/dir/file.txt", false),
    ("**/*.txt", "file.txt", true),
    ("**/**/*.txt", "file.txt", true),
    ("a**/*.txt", "a/file.txt", true),
    ("a**/*.txt", "a/dir/file.txt", true),
    ("a**/*.txt", "a/dir/dir/file.txt", true),
    ("a/*.txt", "a/dir/file.txt", false),
    ("a/*.txt", "a/file.txt", true),
    ("a/*.txt**", "a/file.txt", true),
    ("a[b-d]e", "ae", false),
    ("a[b-d]e", "ace", true),
    ("a[b-d]e", "aae", false),
    ("a[^b-d]e", "aze", true),
    (".*", ".foo", true),
    (".*", "foo", false),
    ("abc.def", "abcdef", false),
    ("abc.def", "abc.def", true),
    ("abc.def", "abcZdef", false),
    ("abc?def", "abcZdef", true),
    ("abc?def", "abcdef", false),
    ("a\\\\", "a\\", true),
    ("**/foo/bar", "foo/bar", true),
    ("**/foo/bar", "dir/foo/bar", true),
    ("**/foo/bar", "dir/dir2/foo/bar", true),
    ("abc/**", "abc", false),
    ("abc/**", "abc/def", true),
    ("abc/**", "abc/def/ghi", true),
    ("**/.foo", ".foo", true),
    ("**/.foo", "bar.foo", false),
    ("a(b)c/def", "a(b)c/def", true),
    ("a(b)c/def", "a(b)c/xyz", false),
    ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
    (
        "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
        "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
        true,
    ),
    ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", true),
    ("a\\*b", "a*b", true),
];

/// As [`MATCHES`], for several patterns.
const MULTIPLE: &[(&[&str], &str, bool)] = &[
    (&["**", "!util/docker/web"], "util/docker/web/foo", false),
    (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
    (
        &["**", "!dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl"],
        "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
        false,
    ),
    (&["**", "!dist/*.whl"], "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", false),
    (&["!fileutils.go", "*.go"], "fileutils.go", true),
    (&["*.go", "!fileutils.go"], "fileutils.go", false),
    (&["docs", "!docs/README.md"], "docs/README.md", false),
    (&["docs/", "!docs/README.md"], "docs/README.md", false),
    (&["docs/*", "!docs/README.md"], "docs/README.md", false),
    (&["docs", "  !docs/README.md "], "docs/README.md", false),
    (&["docs", "config", ""], "config/x", true),
    (&[], "/any/path/there", false),
];

/// `TestMatch` of moby/patternmatcher, from Go's own tests of `filepath.Match`; `None`: malformed.
const GLOBS: &[(&str, &str, Option<bool>)] = &[
    ("abc", "abc", Some(true)),
    ("*", "abc", Some(true)),
    ("*c", "abc", Some(true)),
    ("a*", "a", Some(true)),
    ("a*", "abc", Some(true)),
    ("a*", "ab/c", Some(true)),
    ("a*/b", "abc/b", Some(true)),
    ("a*/b", "a/c/b", Some(false)),
    ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true)),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false)),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Some(false)),
    ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
    ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
    ("ab[c]", "abc", Some(true)),
    ("ab[b-d]", "abc", Some(true)),
    ("ab[e-g]", "abc", Some(false)),
    ("ab[^c]", "abc", Some(false)),
    ("ab[^b-d]", "abc", Some(false)),
    ("ab[^e-g]", "abc", Some(true)),
    ("a\\*b", "a*b", Some(true)),
    ("a\\*b", "ab", Some(false)),
    ("a?b", "a☺b", Some(true)),
    ("a[^a]b", "a☺b", Some(true)),
    ("a???b", "a☺b", Some(false)),
    ("a[^a][^a][^a]b", "a☺b", Some(false)),
    ("[a-ζ]*", "α", Some(true)),
    ("*[a-ζ]", "A", Some(false)),
    ("a?b", "a/b", Some(false)),
    ("a*b", "a/b", Some(false)),
    ("[\\]a]", "]", Some(true)),
    ("[\\-]", "-", Some(true)),
    ("[x\\-]", "x", Some(true)),
    ("[x\\-]", "-", Some(true)),
    ("[x\\-]", "z", Some(false)),
    ("[\\-x]", "x", Some(true)),
    ("[\\-x]", "-", Some(true)),
    ("[\\-x]", "a", Some(false)),
    ("[]a]", "]", None),
    ("[-]", "-", None),
    ("[x-]", "x", None),
    ("[x-]", "-", None),
    ("[x-]", "z", None),
    ("[-x]", "x", None),
    ("[-x]", "-", None),
    ("[-x]", "a", None),
    ("\\", "a", None),
    ("[a-b-c]", "a", None),
    ("[", "a", None),
    ("[^", "a", None),
    ("[^bc", "a", None),
    ("a[", "a", None),
    ("a[", "ab", None),
    ("*x", "xxx", Some(true)),
];

fn patterns(patterns: &[&str]) -> Patterns {
    Patterns::new(patterns).unwrap()
}

/// As a walk does: from the root down, handing on what each directory gave.
fn walked(patterns: &Patterns, path: &[u8]) -> bool {
    let mut above: Option<ParentMatch> = None;
    for (at, byte) in path.iter().enumerate() {
        if *byte == b'/' && at > 0 {
            above = Some(patterns.matches_below(&path[..at], above.as_ref()).1);
        }
    }
    patterns.matches_below(path, above.as_ref()).0
}

#[test]
fn single_patterns_of_mobys_tests() {
    for (pattern, path, expected) in MATCHES {
        let patterns = patterns(&[pattern]);
        assert_eq!(patterns.matches(path.as_bytes()), *expected, "{pattern:?} {path:?}");
        assert_eq!(walked(&patterns, path.as_bytes()), *expected, "walked: {pattern:?} {path:?}");
        assert_eq!(patterns.matches_below(path.as_bytes(), None).0, *expected, "no parent: {pattern:?} {path:?}");
    }
}

#[test]
fn several_patterns_of_mobys_tests() {
    for (list, path, expected) in MULTIPLE {
        let patterns = patterns(list);
        assert_eq!(patterns.matches(path.as_bytes()), *expected, "{list:?} {path:?}");
        assert_eq!(walked(&patterns, path.as_bytes()), *expected, "walked: {list:?} {path:?}");
    }
}

#[test]
fn globs_of_gos_tests() {
    for (pattern, path, expected) in GLOBS {
        let compiled = Patterns::new([pattern]);
        let matched = compiled.ok().map(|patterns| patterns.matches(path.as_bytes()));
        assert_eq!(matched, *expected, "{pattern:?} {path:?}");
        // These two match a directory above, which a glob by itself does not.
        if !path.contains('/') {
            assert_eq!(glob_match(pattern.as_bytes(), path.as_bytes()), *expected, "{pattern:?} {path:?}");
        }
    }
}

/// `TestCompile`: how a pattern is matched, and by which regular expression.
#[test]
fn patterns_are_translated_as_in_moby() {
    let kinds: &[(&str, &str)] = &[
        ("*", r"^[^/]*$"),
        ("file*", r"^file[^/]*$"),
        ("*file", r"^[^/]*file$"),
        ("a*/b", r"^a[^/]*\/b$"),
        ("**", "suffix"),
        ("**/**", r"^(.*/)?.*$"),
        ("dir/**", "prefix"),
        ("**/dir", "suffix"),
        ("**/dir2/*", r"^(.*/)?dir2\/[^/]*$"),
        ("**/dir2/**", r"^(.*/)?dir2\/.*$"),
        ("**file", "suffix"),
        ("**/file*txt", r"^(.*/)?file[^/]*txt$"),
        ("**/**/*.txt", r"^(.*/)?(.*/)?[^/]*\.txt$"),
        ("a[b-d]e", r"^a[b-d]e$"),
        (".*", r"^\.[^/]*$"),
        ("abc.def", "exact"),
        ("abc?def", r"^abc[^/]def$"),
        ("**/foo/bar", "suffix"),
        ("a(b)c/def", "exact"),
        ("a.|)$(}+{bc", "exact"),
        ("dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", "exact"),
    ];
    for (pattern, expected) in kinds {
        let kind = match compile(&clean(pattern.as_bytes())).unwrap() {
            Kind::Exact => "exact".to_owned(),
            Kind::Prefix => "prefix".to_owned(),
            Kind::Suffix => "suffix".to_owned(),
            Kind::Regex(regex) => regex.as_str().to_owned(),
        };
        assert_eq!(kind, *expected, "{pattern:?}");
    }
}

#[test]
fn malformed_patterns_are_refused_and_named() {
    for pattern in ["!", "[", "[Local-Only]/", "a[^", "!["] {
        assert_eq!(Patterns::new([pattern]).unwrap_err().pattern, pattern);
    }
}

#[test]
fn names_that_are_not_utf8_match_byte_by_byte() {
    let matches = |pattern: &[u8], path: &[u8]| Patterns::new([pattern]).unwrap().matches(path);
    assert!(matches(b"caf\xe9", b"caf\xe9"));
    assert!(!matches(b"caf\xe9", b"caf\xe8"));
    assert!(matches(b"caf?", b"caf\xe9"));
    assert!(matches(b"*.txt", b"\xff\xfe.txt"));
    assert!(!matches(b"a?b", b"a\xe2\x98b"));
    assert!(matches(b"a??b", b"a\xe2\x98b"));
}

#[test]
fn ignore_file_of_mobys_test() {
    let content = "\u{feff}test1\n/test2\n/a/file/here\n\nlastfile\n# this is a comment\n! /inverted/abs/path\n!\n! ";
    let expected = ["test1", "test2", "a/file/here", "lastfile", "!inverted/abs/path", "!", "!"];
    assert_eq!(parse_ignore_file(content.as_bytes()), expected.map(|line| line.as_bytes().to_vec()));
    assert_eq!(parse_ignore_file(b"a\r\n ./b/../c \n/\n#x\n"), [b"a".to_vec(), b"c".to_vec(), b"/".to_vec()]);
}

#[test]
fn paths_are_cleaned_as_in_go() {
    for (path, expected) in [
        ("", "."),
        ("abc", "abc"),
        ("abc/", "abc"),
        ("a//b//", "a/b"),
        ("./a/./b/.", "a/b"),
        ("a/../b", "b"),
        ("a/../..", ".."),
        ("../../a", "../../a"),
        ("/..", "/"),
        ("/../a", "/a"),
        ("/", "/"),
        ("a/b/../../..", ".."),
    ] {
        assert_eq!(clean(path.as_bytes()), expected.as_bytes(), "{path:?}");
    }
}

proptest! {
    /// A walk that hands on what directories gave comes to the same answer as looking at each path by itself.
    #[test]
    fn walking_agrees_with_looking(
        list in proptest::collection::vec("!?([ab*?]{1,2}|\\*\\*)(/([ab*?]{1,2}|\\*\\*)){0,2}", 1..5),
        path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        let patterns = Patterns::new(&list).unwrap();
        // Where only `!` patterns match a directory, moby's two ways differ: an exception is not tried on a path as
        // long as nothing matched.
        let list: Vec<_> = list.iter().filter(|pattern| !pattern.starts_with('!')).collect();
        let plain = Patterns::new(&list).unwrap();
        prop_assert_eq!(walked(&plain, path.as_bytes()), plain.matches(path.as_bytes()));
        let _ = walked(&patterns, path.as_bytes());
    }

    /// No pattern and no path, of any bytes, makes it panic; a literal name matches itself.
    #[test]
    fn any_bytes_are_taken(pattern in proptest::collection::vec(any::<u8>(), 0..12), path in proptest::collection::vec(any::<u8>(), 0..12)) {
        if let Ok(patterns) = Patterns::new([&pattern]) {
            let _ = patterns.matches(&path);
        }
        let _ = glob_match(&pattern, &path);
    }

    #[test]
    fn single_level_globs_agree_with_path_match(pattern in "[ab*?\\[\\]^-]{1,6}", name in "[ab]{0,4}") {
        // `^` outside of brackets and doubled stars mean something else to moby.
        prop_assume!(!pattern.contains("**") && !pattern.contains('^') && !name.is_empty());
        // Inside of brackets a star stands for itself in both.
        if let (Ok(patterns), Some(expected)) = (Patterns::new([&pattern]), glob_match(pattern.as_bytes(), name.as_bytes())) {
            prop_assert_eq!(patterns.matches(name.as_bytes()), expected, "{} {}", pattern, name);
        }
    }
}
