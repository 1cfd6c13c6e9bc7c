//! The state directory: `ROOT/ID/` with the monitor's socket and what is known about the container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caisson_proto::control::valid_id;
use serde::{Deserialize, Serialize};

use super::Failed;
use crate::lifecycle::record::Record;

/// What the state directory holds about a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    pub id: String,
    pub bundle: PathBuf,
    pub pid: u32,
    /// Nanoseconds since 1970.
    pub created: u64,
    pub annotations: BTreeMap<String, String>,
    /// Exit status, once it has ended.
    pub exit: Option<u32>,
}

/// A container's directory.
#[derive(Debug, Clone)]
pub(super) struct Place(PathBuf);

impl Place {
    /// The directory of container `id`, which need not exist.
    ///
    /// # Errors
    /// For something that is not an ID.
    pub(super) fn of(root: &Path, id: &str) -> Result<Self, Failed> {
        if !valid_id(id) {
            return Err(format!("container ID {id:?} is not valid").into());
        }
        Ok(Self(root.join(id)))
    }

    /// The same, which must exist.
    ///
    /// # Errors
    /// "container does not exist".
    pub(super) fn existing(root: &Path, id: &str) -> Result<Self, Failed> {
        let place = Self::of(root, id)?;
        if place.0.join("state.json").exists() { Ok(place) } else { Err("container does not exist".into()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("monitor.sock")
    }

    /// Makes the directory and the note, which claims the ID.
    ///
    /// # Errors
    /// When the ID is taken.
    pub(super) fn claim(&self, stored: &Stored) -> Result<(), Failed> {
        if let Some(root) = self.0.parent() {
            fs::create_dir_all(root).map_err(|e| format!("{}: {e}", root.display()))?;
        }
        match fs::create_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(format!("container with given ID already exists: {}", stored.id).into());
            }
            other => other.map_err(|e| format!("{}: {e}", self.0.display()))?,
        }
        Ok(self.save(stored)?)
    }

    /// Writes the note so that no reader sees half of it.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn save(&self, stored: &Stored) -> io::Result<()> {
        let new = self.0.join("state.json.new");
        fs::write(&new, serde_json::to_vec(stored)?)?;
        fs::rename(&new, self.0.join("state.json"))
    }

    /// Reads the note.
    ///
    /// # Errors
    /// Those of the file system and of JSON.
    pub(super) fn load(&self) -> io::Result<Stored> {
        Ok(serde_json::from_slice(&fs::read(self.0.join("state.json"))?)?)
    }

    /// Cleans up after a monitor that is gone, and removes the directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn remove(&self) -> io::Result<()> {
        Record::load(&self.0).clean(&self.0);
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// IDs of all containers, in order.
pub(super) fn ids(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).into_iter().flatten().flatten();
    let mut ids: Vec<String> = names
        .filter(|entry| entry.path().join("state.json").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort();
    ids
}
