//! The file's text. Pure.
//!
//! JSON is UCL, and the one way of writing UCL in which nothing depends on how a value looks: all names and texts are in
//! double quotes, with JSON's escapes. One thing is not JSON's: in double quotes UCL puts the values of variables in the
//! place of `$NAME` and `${NAME}` (`CURDIR` and `FILENAME` always exist), and one `$` in the place of two. It does so only
//! where it sees a `$`, and before it would look at what an escape stands for: so it never sees one.

use serde_json::Value;

/// A value as text, its names in order, so that the same value is the same text each time.
pub(crate) fn render(value: &Value) -> String {
    // Outside of quotes there is no dollar sign in JSON. A value that is made of texts, numbers and names can be written.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default().replace('$', "\\u0024");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::target::ctl::fake::ucl;

    #[test]
    fn variables_are_not_expanded() {
        let value = json!({"a$$b": "${CURDIR} $FILENAME $$ \" } #"});
        let text = render(&value);
        assert!(!text.contains('$'), "{text}");
        assert_eq!(ucl::parse(&text).unwrap(), value);
        // As it would be without: the parser of the tests is one that would tell.
        assert_ne!(ucl::parse(&value.to_string()).unwrap(), value);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever a name or a secret holds, it stays one name or one text.
        #[test]
        fn nothing_breaks_out_of_its_quotes(
            key in "[ -~]{1,12}|\\PC{1,6}",
            secret in "[!-~]{12,16}|[ -~\\n\\t]{0,40}|\\PC{0,20}|[\"\\\\$}{\\]\\[;,#/*.]{0,16}",
        ) {
            let value = json!({"auth-group": {&key: {"chap": [{"secret": secret, "user": key}]}}, "z": 1});
            prop_assert_eq!(ucl::parse(&render(&value)).unwrap(), value.clone());
            prop_assert_eq!(serde_json::from_str::<Value>(&render(&value)).unwrap(), value);
        }
    }
}
