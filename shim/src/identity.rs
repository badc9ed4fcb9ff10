//! Who this is, and what it can do.

use std::collections::HashMap;

use tonic::{Request, Response, Status};

use crate::DRIVER;
use crate::csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use crate::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server,
};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The controller is served here.
    pub controller: bool,
    /// Nodes differ in which volumes they reach.
    pub topology: bool,
}

#[tonic::async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |of: service::Type| Type::Service(Service { r#type: of.into() });
        let mut all = Vec::new();
        if self.controller {
            all.push(service(service::Type::ControllerService));
            all.push(service(service::Type::GroupControllerService));
            all.push(service(service::Type::SnapshotMetadataService));
        }
        if self.topology {
            all.push(service(service::Type::VolumeAccessibilityConstraints));
        }
        let online = volume_expansion::Type::Online.into();
        all.push(Type::VolumeExpansion(VolumeExpansion { r#type: online }));
        let capabilities = all.into_iter().map(|of| PluginCapability { r#type: Some(of) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// An appliance that can't be reached is no reason to start this again: each call says so.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
