//! Makes small model files, right and wrong, for the tests of the readers.
#![allow(dead_code, reason = "each test binary uses a part")]

/// A GGUF file in the making.
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub alignment: usize,
    pub entries: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
}

/// A length-prefixed string.
pub fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = (s.as_ref().len() as u64).to_le_bytes().to_vec();
    out.extend(s.as_ref());
    out
}

/// A metadata entry of any type tag and payload.
pub fn raw_entry(key: impl AsRef<[u8]>, tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = string(key);
    out.extend(tag.to_le_bytes());
    out.extend(payload);
    out
}

/// The payload of an array.
pub fn array(tag: u32, items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let items: Vec<Vec<u8>> = items.into_iter().collect();
    let mut out = tag.to_le_bytes().to_vec();
    out.extend((items.len() as u64).to_le_bytes());
    out.extend(items.concat());
    out
}

/// A tensor description.
pub fn tensor(name: impl AsRef<[u8]>, dims: &[u64], tag: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((dims.len() as u32).to_le_bytes());
    out.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
    out.extend(tag.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

impl Default for GgufFile {
    fn default() -> GgufFile {
        GgufFile { version: 3, alignment: 32, entries: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }
}

impl GgufFile {
    pub fn raw(mut self, key: impl AsRef<[u8]>, tag: u32, payload: &[u8]) -> Self {
        self.entries.push(raw_entry(key, tag, payload));
        self
    }

    pub fn u32(self, key: &str, v: u32) -> Self {
        self.raw(key, 4, &v.to_le_bytes())
    }

    pub fn f32(self, key: &str, v: f32) -> Self {
        self.raw(key, 6, &v.to_le_bytes())
    }

    pub fn bool(self, key: &str, v: bool) -> Self {
        self.raw(key, 7, &[u8::from(v)])
    }

    pub fn str(self, key: &str, v: &str) -> Self {
        self.raw(key, 8, &string(v))
    }

    pub fn strs<S: AsRef<[u8]>>(self, key: &str, v: impl IntoIterator<Item = S>) -> Self {
        let payload = array(8, v.into_iter().map(string));
        self.raw(key, 9, &payload)
    }

    pub fn f32s(self, key: &str, v: impl IntoIterator<Item = f32>) -> Self {
        let payload = array(6, v.into_iter().map(|v| v.to_le_bytes().to_vec()));
        self.raw(key, 9, &payload)
    }

    pub fn i32s(self, key: &str, v: impl IntoIterator<Item = i32>) -> Self {
        let payload = array(5, v.into_iter().map(|v| v.to_le_bytes().to_vec()));
        self.raw(key, 9, &payload)
    }

    /// A tensor description with no data of its own.
    pub fn describe(mut self, name: impl AsRef<[u8]>, dims: &[u64], tag: u32, offset: u64) -> Self {
        self.tensors.push(tensor(name, dims, tag, offset));
        self
    }

    /// A tensor with its data, placed after the others.
    pub fn tensor(mut self, name: &str, dims: &[u64], tag: u32, bytes: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(self.alignment);
        self.data.resize(offset, 0);
        self.data.extend(bytes);
        self.describe(name, dims, tag, offset as u64)
    }

    /// An f32 tensor of ascending numbers.
    pub fn ramp(self, name: &str, dims: &[u64]) -> Self {
        let n = dims.iter().product::<u64>();
        let bytes: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        self.tensor(name, dims, 0, &bytes)
    }

    pub fn build(&self) -> Vec<u8> {
        self.build_claiming(self.tensors.len() as u64, self.entries.len() as u64)
    }

    /// With other counts than the true ones.
    pub fn build_claiming(&self, tensors: u64, entries: u64) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(tensors.to_le_bytes());
        out.extend(entries.to_le_bytes());
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

/// A file of the directory that `MARQUETRY_TEST_MODELS` names, or `None`, said aloud.
pub fn real_model(name: &str) -> Option<std::path::PathBuf> {
    let Some(dir) = std::env::var_os("MARQUETRY_TEST_MODELS") else {
        eprintln!("SKIPPED: set MARQUETRY_TEST_MODELS to a directory with {name} to run this test");
        return None;
    };
    let path = std::path::PathBuf::from(dir).join(name);
    assert!(path.is_file(), "MARQUETRY_TEST_MODELS is set, but {} is not there", path.display());
    Some(path)
}
