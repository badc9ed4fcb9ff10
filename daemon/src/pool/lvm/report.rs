//! What LVM's reports say, read.
//!
//! Called by the group, when it is looked for. Asked in machine form (`--reportformat json`).

use serde::Deserialize;

use crate::kernel::exec::Output;
use crate::pool::Result;
use crate::pool::context::Context;

/// One volume group.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub(super) struct Group {
    pub vg_name: String,
    pub vg_tags: String,
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    #[serde(default)]
    vg: Vec<Group>,
    #[serde(default)]
    pv: Vec<Device>,
}

/// One physical volume.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub(super) struct Device {
    pub pv_name: String,
    pub vg_name: String,
}

fn sections(ctx: &Context, output: &Output) -> Result<Vec<Section>> {
    let text = output.text().map_err(|e| ctx.exec(e))?;
    let report: Report = serde_json::from_str(text).map_err(|e| ctx.exec(output.unparsed(&e)))?;
    Ok(report.report)
}

/// The volume groups of a `vgs`.
pub(super) fn groups(ctx: &Context, output: &Output) -> Result<Vec<Group>> {
    Ok(sections(ctx, output)?.into_iter().flat_map(|s| s.vg).collect())
}

/// The physical volumes of a `pvs`.
pub(super) fn devices(ctx: &Context, output: &Output) -> Result<Vec<Device>> {
    Ok(sections(ctx, output)?.into_iter().flat_map(|s| s.pv).collect())
}
