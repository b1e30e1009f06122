//! Operations that the server knows beforehand, so that clients name them by their hash.

use std::{collections::HashMap, fs, io, path::Path, sync::Arc};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use crate::parameters::Problem;

/// Operations by their id: the SHA-256 of their text in hexadecimal, and whatever else they were named.
#[derive(Debug, Clone, Default)]
pub struct Persisted {
    documents: Arc<HashMap<String, String>>,
    only: bool,
}

impl Persisted {
    pub(crate) const UNKNOWN: Problem =
        Problem { code: "PERSISTED_QUERY_NOT_FOUND", message: "the server knows no operation of this id" };
    const REFUSED: Problem =
        Problem { code: "OPERATION_NOT_ALLOWED", message: "only operations that the server knows beforehand are run" };
    const OTHER: Problem =
        Problem { code: "BAD_REQUEST", message: "the hash of the request is not the hash of its document" };

    /// Reads operations: of a folder every `.graphql` and `.gql` file, named by its file too; of a JSON file an object of texts by id.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn load(path: &Path) -> io::Result<Self> {
        let named = if path.is_dir() { read_folder(path)? } else { serde_json::from_slice(&fs::read(path)?)? };
        Ok(Self::new(named))
    }

    /// Operations with names of their own. They are known by their hash too.
    pub fn new(named: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut documents = HashMap::new();
        for (name, text) in named {
            documents.insert(hash(&text), text.clone());
            documents.insert(name, text);
        }
        Self { documents: Arc::new(documents), only: false }
    }

    /// Refuses every other operation.
    #[must_use]
    pub fn only(mut self) -> Self {
        self.only = true;
        self
    }

    /// The document of a request that has a text, an id, or both.
    pub(crate) fn text(&self, query: Option<String>, id: Option<&str>) -> Result<String, Problem> {
        let id = id.map(|id| id.strip_prefix("sha256:").unwrap_or(id));
        let Some(query) = query else {
            return self.documents.get(id.ok_or(Problem::NO_QUERY)?).cloned().ok_or(Self::UNKNOWN);
        };
        if !self.only && id.is_none() {
            return Ok(query);
        }
        let hash = hash(&query);
        if self.only && !self.documents.contains_key(&hash) {
            return Err(Self::REFUSED);
        }
        match id {
            Some(id) if id != hash && self.documents.get(id) != Some(&query) => Err(Self::OTHER),
            _ => Ok(query),
        }
    }
}

fn hash(text: &str) -> String {
    HEXLOWER.encode(digest(&SHA256, text.as_bytes()).as_ref())
}

fn read_folder(folder: &Path) -> io::Result<HashMap<String, String>> {
    let mut named = HashMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_document = path.extension().is_some_and(|extension| extension == "graphql" || extension == "gql");
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|_| is_document) {
            named.insert(name.to_owned(), fs::read_to_string(&path)?);
        }
    }
    Ok(named)
}
