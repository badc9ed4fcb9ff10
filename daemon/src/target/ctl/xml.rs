//! The lists that the kernel makes: a list of records, each of fields. Pure.
//!
//! Strict, because the kernel puts texts of others into its list of sessions as they came: the alias of an initiator may
//! hold anything. 127 characters can't forge a whole record with all its fields, and what is less is not taken for one.

/// A field: its name, the `id` that it has perhaps, and its text.
pub(super) type Field = (String, Option<u64>, String);

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Its `id`.
    pub id: u64,
    /// Its fields, in order.
    pub fields: Vec<Field>,
}

impl Record {
    /// The text of a field; an error if there are several of that name.
    pub(super) fn get(&self, name: &str) -> Result<Option<&str>, String> {
        let mut all = self.fields.iter().filter(|(n, _, _)| n == name);
        match (all.next(), all.next()) {
            (first, None) => Ok(first.map(|(_, _, text)| text.as_str())),
            _ => Err(format!("more than one {name} in record {}", self.id)),
        }
    }

    /// The text of a field that must be there.
    pub(super) fn need(&self, name: &str) -> Result<&str, String> {
        self.get(name)?.ok_or_else(|| format!("no {name} in record {}", self.id))
    }
}

struct Reader<'a>(&'a str);

impl Reader<'_> {
    fn blank(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r', '\0']);
    }

    fn token(&mut self, token: &str) -> bool {
        match self.0.strip_prefix(token) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn must(&mut self, token: &str) -> Result<(), String> {
        if self.token(token) { Ok(()) } else { Err(format!("{token} was expected")) }
    }

    /// `<name>` or `<name id="1">`.
    fn open(&mut self) -> Result<(String, Option<u64>), String> {
        self.must("<")?;
        let end = self.0.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c))).unwrap_or(0);
        let (name, rest) = self.0.split_at(end);
        self.0 = rest;
        if name.is_empty() {
            return Err("a name was expected".into());
        }
        let mut id = None;
        if self.token(" id=\"") {
            let (digits, rest) = self.0.split_once('"').ok_or("an id without end")?;
            id = Some(digits.parse().map_err(|_| "an id that is no number")?);
            self.0 = rest;
        }
        self.must(">")?;
        Ok((name.to_string(), id))
    }

    fn text(&mut self) -> String {
        let (text, rest) = self.0.split_at(self.0.find('<').unwrap_or(self.0.len()));
        self.0 = rest;
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    }
}

/// The records of a list.
pub(super) fn records(text: &str, list: &str, record: &str) -> Result<Vec<Record>, String> {
    let mut r = Reader(text);
    let mut found = Vec::new();
    r.blank();
    r.must(&format!("<{list}>"))?;
    loop {
        r.blank();
        if r.token(&format!("</{list}>")) {
            break;
        }
        let (name, id) = r.open()?;
        let id = id.filter(|_| name == record).ok_or_else(|| format!("{name} in {list}"))?;
        let mut fields = Vec::new();
        loop {
            r.blank();
            if r.token(&format!("</{record}>")) {
                break;
            }
            let (name, id) = r.open()?;
            let text = r.text();
            r.must(&format!("</{name}>"))?;
            fields.push((name, id, text));
        }
        found.push(Record { id, fields });
    }
    r.blank();
    if r.0.is_empty() { Ok(found) } else { Err(format!("something after {list}")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes_and_nothing_else() {
        let text = "<l>\n<r id=\"7\">\n\t<a>x &amp; y</a>\n\t<lun id=\"0\">3</lun>\n<b></b></r>\n</l>\n\0";
        let found = records(text, "l", "r").unwrap();
        assert_eq!(found[0].id, 7);
        assert_eq!(found[0].need("a").unwrap(), "x & y");
        assert_eq!(found[0].fields[1], ("lun".into(), Some(0), "3".into()));
        assert!(found[0].need("c").is_err() && found[0].get("c").unwrap().is_none());
        assert!(records("<l></l>", "l", "r").unwrap().is_empty());
        for bad in [
            "",
            "<l>",
            "<l></l>x",
            "<l><q id=\"1\"></q></l>",
            "<l><r></r></l>",
            "<l><r id=\"x\"></r></l>",
            "<l><r id=\"1\"><a>1</b></r></l>",
            "<l><r id=\"1\"><a>1</a></l>",
            "<l><r id=\"1\"><a><b></b></a></r></l>",
            "<l>\u{e4}</l>",
            "garbage",
        ] {
            assert!(records(bad, "l", "r").is_err(), "{bad}");
        }
        let twice = records("<l><r id=\"1\"><a>1</a><a>2</a></r></l>", "l", "r").unwrap();
        assert!(twice[0].get("a").is_err());
    }
}
