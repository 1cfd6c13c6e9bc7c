//! What programs touch first.
//!
//! A program that is started again and again begins the same way: the same pages of its image fault, one by one, a fault being as expensive as the
//! copies of fifty pages. So the faults in the image of a program are remembered by the program's file, as distances from its start, and the next process
//! that executes it has them resolved before it runs. That goes for its text, its data and its zeroes; not for its heap, its stack and its libraries, which are
//! elsewhere each time.
//!
//! These are hints about a file, whoever runs it; a wrong one costs a page. So that they do not stay wrong for ever, everything is learnt anew from
//! time to time. Locks: leaves.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use super::fault::MemoryAccess;
use super::mappable::MappingIdentity;
use crate::vfs::Device;

/// Pages that are remembered of a program.
const MAX_PAGES: usize = 64;
/// Programs that are remembered.
const MAX_PROGRAMS: usize = 64;
/// After so many starts everything is learnt anew.
const STARTS: u32 = 32;

/// Which file a program is.
type Program = (Device, u64);

/// The newest first.
type Programs = VecDeque<(Program, Arc<Habit>)>;

static PROGRAMS: LazyLock<Mutex<Programs>> = LazyLock::new(Mutex::default);

/// Faults of a program in its own image.
#[derive(Debug, Default)]
pub(super) struct Habit(Mutex<Touched>);

#[derive(Debug, Default)]
struct Touched {
    starts: u32,
    /// Pages from the image's start, and what was done there.
    pages: Vec<(u64, MemoryAccess)>,
}

impl Habit {
    /// What is known of the program in this file.
    pub fn of(file: &MappingIdentity) -> Arc<Habit> {
        let program = (file.device, file.ino);
        let mut programs = PROGRAMS.lock();
        let known = programs.iter().position(|(other, _)| *other == program);
        let entry = known.and_then(|at| programs.remove(at)).unwrap_or((program, Arc::default()));
        let habit = entry.1.clone();
        programs.push_front(entry);
        programs.truncate(MAX_PROGRAMS);
        habit
    }

    /// A start of the program: what will be touched.
    pub fn start(&self) -> Vec<(u64, MemoryAccess)> {
        let mut touched = self.0.lock();
        touched.starts += 1;
        if touched.starts >= STARTS {
            *touched = Touched::default();
        }
        touched.pages.clone()
    }

    fn note(&self, page: u64, access: MemoryAccess) {
        let mut touched = self.0.lock();
        if let Some((_, known)) = touched.pages.iter_mut().find(|(known, _)| *known == page) {
            if access == MemoryAccess::Write {
                // It was read first, and is written now.
                *known = access;
            }
        } else if touched.pages.len() < MAX_PAGES {
            touched.pages.push((page, access));
        }
    }
}

/// The habit of the program that an address space was made for, and where its image is, in page numbers.
#[derive(Debug)]
pub(super) struct Habitat {
    pub habit: Arc<Habit>,
    pub image: Range<u64>,
}

impl Habitat {
    /// A page has faulted.
    pub fn note(&self, page: u64, access: MemoryAccess) {
        if self.image.contains(&page) {
            self.habit.note(page - self.image.start, access);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_apart_and_learnt_anew() {
        let file = |ino| MappingIdentity { ino, ..Default::default() };
        let (one, other) = (u64::MAX, u64::MAX - 1);
        let habitat = Habitat { habit: Habit::of(&file(one)), image: 100..1000 };
        habitat.note(100, MemoryAccess::Read);
        habitat.note(107, MemoryAccess::Execute);
        habitat.note(100, MemoryAccess::Write);
        habitat.note(99, MemoryAccess::Write);
        habitat.note(1000, MemoryAccess::Write);
        let known = [(0, MemoryAccess::Write), (7, MemoryAccess::Execute)];
        assert_eq!(Habit::of(&file(one)).start(), known);
        assert!(Habit::of(&file(other)).start().is_empty());
        let starts = (0..STARTS).filter(|_| !Habit::of(&file(one)).start().is_empty()).count() as u32;
        assert_eq!(starts, STARTS - 2);
        (200..1000).for_each(|page| habitat.note(page, MemoryAccess::Read));
        assert_eq!(Habit::of(&file(one)).start().len(), MAX_PAGES);
        (0..MAX_PROGRAMS as u64).for_each(|ino| drop(Habit::of(&file(ino))));
        assert!(Habit::of(&file(one)).start().is_empty());
    }
}
