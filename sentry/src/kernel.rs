//! The sandbox: what all its containers share.

use std::sync::Arc;

use crate::platform::Platform;

/// One sandbox's kernel.
pub struct Kernel {
    platform: Arc<dyn Platform>,
}

impl Kernel {
    /// The platform that runs guest code.
    pub fn platform(&self) -> &Arc<dyn Platform> {
        &self.platform
    }
}
