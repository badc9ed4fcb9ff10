//! Alarms: what a person should look at, and who takes care of it.

use axum::Json;
use axum::extract::State;
use orlop_api::{Alarm, AlarmAcknowledge, Page, Problem};

use super::submit;
use crate::engine::{Action, Outcome};
use crate::http::Api;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Ask, Caller};

/// All alarms: raised ones first, the worst and oldest of them first, then acknowledged ones, then those that were cleared
/// in the last day.
#[utoipa::path(get, path = "/v1/alarms", tag = "system", responses((status = 200, body = Page<Alarm>)))]
pub async fn list(State(api): State<Api>) -> Json<Page<Alarm>> {
    Json(Page { items: api.engine.view().all_alarms(), next: None })
}

/// Says that the caller takes care of an alarm. Who said so first is kept.
#[utoipa::path(post, path = "/v1/alarms/acknowledge", tag = "system", request_body = AlarmAcknowledge, responses(
    (status = 200, body = Alarm),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such alarm, or it is over"),
    (status = "default", body = Problem, content_type = "application/problem+json"),
))]
pub async fn acknowledge(
    State(api): State<Api>,
    Caller(who): Caller,
    Ask(ask): Ask<AlarmAcknowledge>,
) -> ApiResult<Json<Alarm>> {
    match submit(&api, who, Action::AcknowledgeAlarm(ask.subject)).await? {
        Outcome::Alarm(alarm) => Ok(Json(alarm)),
        _ => Err(ApiError::unexpected()),
    }
}
