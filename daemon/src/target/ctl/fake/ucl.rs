//! A parser of UCL, written from its description and not from ours: what is quoted, what is a variable, what is a comment.

use serde_json::{Map, Value};

/// What `ctld`'s parser knows of the file that it reads.
const VARIABLES: [(&str, &str); 2] = [("CURDIR", "/var/db/orlop"), ("FILENAME", "/var/db/orlop/ctl.conf")];

struct Reader {
    text: Vec<char>,
    at: usize,
}

/// `$NAME`, `${NAME}` and `$$`, in a text with escapes undone.
fn expand(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    'next: while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        for (name, value) in VARIABLES {
            for pattern in [format!("{{{name}}}"), name.to_string()] {
                if let Some(after) = rest.strip_prefix(&pattern) {
                    out.push_str(value);
                    rest = after;
                    continue 'next;
                }
            }
        }
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
        }
        out.push('$');
    }
    out + rest
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or("the end came too early")?;
        self.at += 1;
        Ok(c)
    }

    fn blank(&mut self) {
        while let Some(c) = self.peek() {
            let comment = c == '#' || c == '/' && self.text.get(self.at + 1) == Some(&'*');
            if comment {
                let long = c == '/';
                while let Some(c) = self.peek() {
                    self.at += 1;
                    if !long && c == '\n' || long && c == '/' && self.text[self.at - 2] == '*' {
                        break;
                    }
                }
            } else if c.is_ascii_whitespace() {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn quoted(&mut self, variables: bool) -> Result<String, String> {
        let (mut out, mut dollar) = (String::new(), false);
        loop {
            match self.next()? {
                '"' => return Ok(if dollar && variables { expand(&out) } else { out }),
                '\\' => match self.next()? {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    'u' => {
                        let mut code = 0;
                        for _ in 0..4 {
                            code = code * 16 + self.next()?.to_digit(16).ok_or("not hexadecimal")?;
                        }
                        out.push(char::from_u32(code).ok_or("not a character")?);
                    }
                    c => out.push(c),
                },
                c if u32::from(c) < 0x20 => return Err("a control character in a text".into()),
                c => {
                    dollar |= c == '$';
                    out.push(c);
                }
            }
        }
    }

    fn word(&mut self) -> String {
        let mut out = String::new();
        while let Some(c) = self.peek().filter(|c| !c.is_ascii_whitespace() && !"{}[]:=,;\"#".contains(*c)) {
            out.push(c);
            self.at += 1;
        }
        out
    }

    fn value(&mut self) -> Result<Value, String> {
        self.blank();
        match self.peek() {
            Some('{') => {
                self.at += 1;
                let map = self.pairs(Some('}'))?;
                Ok(Value::Object(map))
            }
            Some('[') => {
                self.at += 1;
                let mut all = Vec::new();
                loop {
                    self.blank();
                    match self.peek() {
                        Some(']') => {
                            self.at += 1;
                            return Ok(Value::Array(all));
                        }
                        Some(',' | ';') => self.at += 1,
                        _ => all.push(self.value()?),
                    }
                }
            }
            Some('"') => {
                self.at += 1;
                Ok(Value::String(self.quoted(true)?))
            }
            _ => {
                let word = self.word();
                match word.parse::<u64>() {
                    Ok(n) => Ok(n.into()),
                    Err(_) if word.is_empty() => Err("no value".into()),
                    Err(_) => Ok(Value::String(expand(&word))),
                }
            }
        }
    }

    fn pairs(&mut self, end: Option<char>) -> Result<Map<String, Value>, String> {
        let mut map = Map::new();
        loop {
            self.blank();
            match self.peek() {
                c if c == end => {
                    self.at += 1;
                    return Ok(map);
                }
                Some(',' | ';') => self.at += 1,
                Some('.') => return Err("a macro".into()),
                _ => {
                    let key = if self.peek() == Some('"') {
                        self.at += 1;
                        self.quoted(false)?
                    } else {
                        self.word()
                    };
                    self.blank();
                    if let Some(':' | '=') = self.peek() {
                        self.at += 1;
                    }
                    let value = self.value()?;
                    if map.insert(key, value).is_some() {
                        // An array would be made of the two, which ctld does not expect.
                        return Err("a name twice".into());
                    }
                }
            }
        }
    }
}

/// A file.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut r = Reader { text: text.chars().collect(), at: 0 };
    r.blank();
    let map = if r.peek() == Some('{') {
        r.at += 1;
        let map = r.pairs(Some('}'))?;
        r.blank();
        if r.peek().is_some() {
            return Err("something after the end".into());
        }
        map
    } else {
        r.pairs(None)?
    };
    Ok(Value::Object(map))
}
