//! A row of 151 columns. Databases make JSON by functions that take a hundred arguments or so.

use sea_orm::entity::prelude::*;

macro_rules! wide {
    ($($text:ident)*; $($int:ident)*; $($double:ident)*) => {
        #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
        #[sea_orm(table_name = "wide")]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub id: i32,
            $(pub $text: Option<String>,)*
            $(pub $int: Option<i32>,)*
            $(pub $double: Option<f64>,)*
        }

        impl Model {
            /// A row of which every third column is null, and whose texts end as JSON does.
            pub fn example(id: i32) -> Self {
                let mut place = id;
                let mut next = || {
                    place += 1;
                    (place % 3 != 0).then_some(place)
                };
                Self {
                    id,
                    $($text: next().map(|n| format!("{n}\"]}}")),)*
                    $($int: next(),)*
                    $($double: next().map(|n| f64::from(n) + 0.1),)*
                }
            }
        }
    };
}

wide! {
    t01 t02 t03 t04 t05 t06 t07 t08 t09 t10 t11 t12 t13 t14 t15 t16 t17 t18 t19 t20 t21 t22 t23 t24 t25 t26 t27 t28 t29 t30 t31 t32
    t33 t34 t35 t36 t37 t38 t39 t40 t41 t42 t43 t44 t45 t46 t47 t48 t49 t50;
    i01 i02 i03 i04 i05 i06 i07 i08 i09 i10 i11 i12 i13 i14 i15 i16 i17 i18 i19 i20 i21 i22 i23 i24 i25 i26 i27 i28 i29 i30 i31 i32
    i33 i34 i35 i36 i37 i38 i39 i40 i41 i42 i43 i44 i45 i46 i47 i48 i49 i50;
    d01 d02 d03 d04 d05 d06 d07 d08 d09 d10 d11 d12 d13 d14 d15 d16 d17 d18 d19 d20 d21 d22 d23 d24 d25 d26 d27 d28 d29 d30 d31 d32
    d33 d34 d35 d36 d37 d38 d39 d40 d41 d42 d43 d44 d45 d46 d47 d48 d49 d50
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
