//! `#[derive(Module)]`: names the parameters of a plain struct by its field paths.

use proc_macro::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Fields, LitStr, parse_macro_input};

struct Options {
    name: Option<LitStr>,
    skip: bool,
    flatten: bool,
}

fn options(field: &syn::Field) -> syn::Result<Options> {
    let mut o = Options { name: None, skip: false, flatten: false };
    for attr in field.attrs.iter().filter(|a| a.path().is_ident("module")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                o.name = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("skip") {
                o.skip = true;
            } else if meta.path.is_ident("flatten") {
                o.flatten = true;
            } else {
                return Err(meta.error("expected `name = \"..\"`, `skip` or `flatten`"));
            }
            Ok(())
        })?;
    }
    Ok(o)
}

/// Implements `Module`: every field is a module (`Param`, another module, `Vec` or `Option` of one) unless marked. A variant of an
/// enum holds one module.
///
/// * `#[module(name = "q_proj")]` uses another name than the field's;
/// * `#[module(flatten)]` adds nothing to the path;
/// * `#[module(skip)]` leaves the field out.
#[proc_macro_derive(Module, attributes(module))]
pub fn derive_module(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    match expand(&input) {
        Ok(tokens) => tokens.into(),
        Err(e) => e.to_compile_error().into(),
    }
}

fn expand(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let body = match &input.data {
        Data::Struct(data) => fields(input, data)?,
        Data::Enum(data) => variants(data)?,
        Data::Union(_) => return Err(syn::Error::new_spanned(&input.ident, "a module is a struct or an enum")),
    };
    let ident = &input.ident;
    let (generics, types, clause) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::marquetry_frontend::Module for #ident #types #clause {
            fn visit<'visit>(&'visit self, path: &str, f: &mut dyn FnMut(&str, &'visit ::marquetry_frontend::Param)) {
                #body
            }
        }
    })
}

/// Each variant holds one module, which has the path of the whole.
fn variants(data: &syn::DataEnum) -> syn::Result<proc_macro2::TokenStream> {
    let mut arms = vec![];
    for v in &data.variants {
        let Fields::Unnamed(fields) = &v.fields else {
            return Err(syn::Error::new_spanned(v, "a variant of a module holds one module: `Name(Type)`"));
        };
        if fields.unnamed.len() != 1 {
            return Err(syn::Error::new_spanned(v, "a variant of a module holds one module: `Name(Type)`"));
        }
        let ident = &v.ident;
        arms.push(quote! { Self::#ident(m) => ::marquetry_frontend::Module::visit(m, path, f), });
    }
    Ok(quote! { match self { #(#arms)* } })
}

fn fields(input: &DeriveInput, data: &syn::DataStruct) -> syn::Result<proc_macro2::TokenStream> {
    let Fields::Named(fields) = &data.fields else {
        return Err(syn::Error::new_spanned(&input.ident, "a module has named fields"));
    };
    let mut visits = vec![];
    for field in &fields.named {
        let o = options(field)?;
        let Some(ident) = &field.ident else { continue };
        if o.skip {
            continue;
        }
        let name = o.name.map_or_else(|| ident.to_string(), |n| n.value());
        // A field that is no module is reported where its type stands.
        let at = field.ty.span();
        visits.push(if o.flatten {
            quote_spanned! { at=> ::marquetry_frontend::Module::visit(&self.#ident, path, f); }
        } else {
            quote_spanned! { at=> ::marquetry_frontend::Module::visit(&self.#ident, &::marquetry_frontend::join(path, #name), f); }
        });
    }
    Ok(quote! { #(#visits)* })
}
