//! What an appliance says, as gRPC says it. The table of kinds is the API's; what CSI means otherwise is said at the call.

use orlop_api::{ErrorKind, ParseError, Problem};
use tonic::{Code, Response, Status};

/// What a call comes to.
pub type Result<T> = std::result::Result<T, Status>;
/// The same as it is sent.
pub type Answer<T> = std::result::Result<Response<T>, Status>;

/// Any problem that the caller is told as it is.
pub fn of(problem: Problem) -> Status {
    let code = match problem.kind {
        // Its own credential is the driver's affair, and no fault of the call: the same one succeeds once it is mended.
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => Code::Unavailable,
        kind => Code::from_i32(kind.grpc_code()),
    };
    let mut text = problem.detail;
    if let Some(field) = problem.field {
        text = format!("{field}: {text}");
    }
    if let (Some(have), Some(want)) = (problem.have, problem.want) {
        text += &format!(" (it is {have}, asked for was {want})");
    }
    if !problem.dependants.is_empty() {
        text += &format!(": {}", problem.dependants.join(", "));
    }
    Status::new(code, text)
}

/// Fine if it is gone.
pub fn gone<T: Default>(answer: std::result::Result<T, Problem>) -> Result<T> {
    match answer {
        Err(p) if p.kind == ErrorKind::NotFound => Ok(T::default()),
        answer => answer.map_err(of),
    }
}

/// What this machine's kernel refused.
pub fn of_io(e: &std::io::Error) -> Status {
    Status::internal(e.to_string())
}

/// The call says what can't be.
pub fn invalid(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

/// A field of the call is missing.
pub fn missing(field: &str) -> Status {
    invalid(format!("{field} is missing"))
}

/// A field of the call is not what it should be.
pub fn malformed(field: &str) -> impl FnOnce(ParseError) -> Status {
    move |e| invalid(format!("{field}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_code() {
        for kind in ErrorKind::ALL {
            let status = of(Problem::new(kind, "why"));
            assert_ne!(status.code(), Code::Ok);
            assert_ne!(status.code(), Code::Unknown, "{kind:?}");
            // The sidecars take these for the driver having no such call, or for themselves not being let in.
            assert!(![Code::PermissionDenied, Code::Unauthenticated].contains(&status.code()), "{kind:?}");
        }
        let mut problem = Problem::new(ErrorKind::Conflict, "volume x is there");
        (problem.field, problem.have, problem.want) =
            (Some("size".into()), Some("1".into()), Some("2".into()));
        assert_eq!(of(problem).message(), "size: volume x is there (it is 1, asked for was 2)");
    }
}
