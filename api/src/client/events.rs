//! The event stream: server-sent events, read line by line, with reconnection.
//!
//! Called by [`super::Client::events`].

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use reqwest::Response;

use super::{Client, Result, checked, transport};
use crate::{ErrorKind, Event, Problem};

/// The pause before a new attempt: doubled each time, from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// A line that is longer is no event of ours.
const LONGEST_LINE: usize = 1 << 20;

struct Reader {
    client: Client,
    after: Option<u64>,
    response: Option<Response>,
    parser: Parser,
    ready: VecDeque<Event>,
    answered: bool,
    ended: bool,
    pause: Duration,
}

pub(super) fn stream(client: Client, after: Option<u64>) -> impl Stream<Item = Result<Event>> + Send {
    let reader = Reader {
        client,
        after,
        response: None,
        parser: Parser::default(),
        ready: VecDeque::new(),
        answered: false,
        ended: false,
        pause: PAUSES.0,
    };
    unfold(reader, async |mut r| {
        let item = r.next().await?;
        Some((item, r))
    })
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            if let Err(problem) = self.fill().await {
                self.response = None;
                if !self.answered || !(problem.retryable || problem.kind == ErrorKind::Internal) {
                    self.ended = true;
                    return Some(Err(problem));
                }
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSES.1);
            }
        }
    }

    /// Reads one more piece, over a new connection if need be.
    async fn fill(&mut self) -> Result<()> {
        if self.response.is_none() {
            self.response = Some(self.connect().await?);
            self.parser = Parser::default();
            self.answered = true;
        }
        let Some(response) = &mut self.response else { return Ok(()) };
        let chunk = response.chunk().await.map_err(transport)?;
        let chunk =
            chunk.ok_or_else(|| Problem::new(ErrorKind::Unavailable, "the daemon ended the stream"))?;
        self.pause = PAUSES.0;
        for (id, data) in self.parser.feed(&chunk)? {
            self.after = id.or(self.after);
            // What can't be read is of a kind that only a newer daemon knows; its number counts.
            self.ready.extend(serde_json::from_str::<Event>(&data));
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Response> {
        let mut request =
            self.client.authorized(self.client.streams.get(self.client.url(&["v1", "events"])?));
        if let Some(after) = self.after {
            request = request.header("Last-Event-ID", after.to_string());
        }
        checked(request.send().await.map_err(transport)?).await
    }
}

/// What the WHATWG's HTML standard calls "interpreting an event stream", less what the daemon never
/// sends (a byte order mark, `retry`, lone carriage returns).
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    id: Option<u64>,
    data: String,
}

impl Parser {
    /// The complete events: id and data. An id without data still moves the place to go on from.
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<(Option<u64>, String)>> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() > LONGEST_LINE {
                return Err(Problem::new(ErrorKind::Internal, "the event stream is not understood"));
            }
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                self.take(line.trim_end_matches(['\r', '\n']), &mut out);
            }
        }
        Ok(out)
    }

    fn take(&mut self, line: &str, out: &mut Vec<(Option<u64>, String)>) {
        if line.is_empty() {
            let (id, data) = (self.id.take(), std::mem::take(&mut self.data));
            if id.is_some() || !data.is_empty() {
                out.push((id, data));
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = value.parse().ok(),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text =
            ": hello\n\nid: 4\n\nid: 5\nevent: host_put\ndata: {\"a\":1}\n\n:\n\ndata: x\ndata: y\r\n\r\n";
        let want =
            vec![(Some(4), String::new()), (Some(5), "{\"a\":1}".to_string()), (None, "x\ny".to_string())];
        for cut in 0..text.len() {
            let mut p = Parser::default();
            let mut got = p.feed(&text.as_bytes()[..cut]).unwrap();
            got.extend(p.feed(&text.as_bytes()[cut..]).unwrap());
            assert_eq!(got, want, "cut at {cut}");
        }
        assert!(Parser::default().feed(&vec![b'x'; LONGEST_LINE + 1]).is_err());
    }
}
