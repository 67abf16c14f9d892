//! The proxy's subset hint: every way to write an address selects the same endpoint, and no other.

use ext_proc::subset::Subset;

/// Asserts that `entry` selects `endpoint`, and another port only if `names_every_port`.
#[track_caller]
fn check(entry: &str, endpoint: &str, names_every_port: bool) {
    let subset = Subset::parse([entry]);
    let contains = |endpoint: &str| subset.contains(endpoint.parse().unwrap());
    assert!(contains(endpoint), "{entry} does not name {endpoint}");
    let (host, _) = endpoint.rsplit_once(':').unwrap();
    assert_eq!(contains(&format!("{host}:9")), names_every_port, "{entry} and port 9");
    for other in ["10.0.0.2:8000", "[2001:db8::2]:8000", "[::2]:8000", "[::ffff:10.0.0.2]:8000"] {
        assert!(!contains(other), "{entry} names {other}");
    }
}

#[test]
fn every_spelling_of_an_address_names_its_endpoint() {
    for entry in ["::1", "[::1]", "0:0:0:0:0:0:0:1", "[0000:0000:0000:0000:0000:0000:0000:0001]", " ::1 "] {
        check(entry, "[::1]:8000", true);
    }
    for entry in ["[::1]:8000", "[0:0:0:0:0:0:0:1]:8000", "0:0:0:0:0:0:0:1:8000", "::1:8000"] {
        check(entry, "[::1]:8000", false);
    }
    for entry in ["2001:DB8::a", "2001:0db8::000A", "[2001:db8:0:0:0:0:0:a]"] {
        check(entry, "[2001:db8::a]:8000", true);
    }
    check("[2001:DB8:0::A]:8000", "[2001:db8::a]:8000", false);
    // Both the entry and the endpoint may be an IPv4 address that is mapped into IPv6.
    for endpoint in ["10.0.0.1:8000", "[::ffff:10.0.0.1]:8000"] {
        for entry in ["10.0.0.1", "::ffff:10.0.0.1", "[::ffff:a00:1]", "0:0:0:0:0:FFFF:0A00:0001"] {
            check(entry, endpoint, true);
        }
        for entry in ["10.0.0.1:8000", "[::ffff:10.0.0.1]:8000"] {
            check(entry, endpoint, false);
        }
    }
}

#[test]
fn an_entry_that_is_not_an_address_names_no_endpoint() {
    for entry in
        ["", ":", ":8000", "[]", "[]:8000", "qwen-0", "qwen-0:8000", "[::1", "::1]:8000", "[::1]:", "*"]
    {
        let subset = Subset::parse([entry]);
        for endpoint in ["10.0.0.1:8000", "[::1]:8000", "0.0.0.0:8000", "[::]:8000"] {
            assert!(!subset.contains(endpoint.parse().unwrap()), "{entry} names {endpoint}");
        }
        // Control: a valid entry beside it counts.
        assert!(Subset::parse([entry, "10.0.0.1"]).contains("10.0.0.1:8000".parse().unwrap()));
    }
}
