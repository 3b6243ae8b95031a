-- Made by `boxoffice rights postgres`. For psql (15 or newer), as whoever may create roles; safe to repeat.
-- A role gets the password that psql's environment holds, in BOXOFFICE_ORDERS_PASSWORD and so on, or keeps its own.
\set ON_ERROR_STOP on
begin;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_batch') then
        create role boxoffice_batch login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_expiration') then
        create role boxoffice_expiration login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_history') then
        create role boxoffice_history login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_identity') then
        create role boxoffice_identity login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_notification') then
        create role boxoffice_notification login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_orders') then
        create role boxoffice_orders login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_tickets') then
        create role boxoffice_tickets login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_web') then
        create role boxoffice_web login;
    end if;
end $$;

do $$ begin
    if not exists (select from pg_roles where rolname = 'boxoffice_migrate') then
        create role boxoffice_migrate login;
    end if;
end $$;

do $$ begin
    execute format('revoke all on database %I from public', current_database());
    execute format('grant connect on database %I to boxoffice_batch, boxoffice_expiration, boxoffice_history, boxoffice_identity, boxoffice_notification, boxoffice_orders, boxoffice_tickets, boxoffice_web, boxoffice_migrate', current_database());
    execute format('grant create on database %I to boxoffice_migrate', current_database());
end $$;
revoke create on schema public from public;

\getenv password BOXOFFICE_BATCH_PASSWORD
\if :{?password}
alter role boxoffice_batch password :'password';
\unset password
\endif

\getenv password BOXOFFICE_EXPIRATION_PASSWORD
\if :{?password}
alter role boxoffice_expiration password :'password';
\unset password
\endif

\getenv password BOXOFFICE_HISTORY_PASSWORD
\if :{?password}
alter role boxoffice_history password :'password';
\unset password
\endif

\getenv password BOXOFFICE_IDENTITY_PASSWORD
\if :{?password}
alter role boxoffice_identity password :'password';
\unset password
\endif

\getenv password BOXOFFICE_NOTIFICATION_PASSWORD
\if :{?password}
alter role boxoffice_notification password :'password';
\unset password
\endif

\getenv password BOXOFFICE_ORDERS_PASSWORD
\if :{?password}
alter role boxoffice_orders password :'password';
\unset password
\endif

\getenv password BOXOFFICE_TICKETS_PASSWORD
\if :{?password}
alter role boxoffice_tickets password :'password';
\unset password
\endif

\getenv password BOXOFFICE_WEB_PASSWORD
\if :{?password}
alter role boxoffice_web password :'password';
\unset password
\endif

\getenv password BOXOFFICE_MIGRATE_PASSWORD
\if :{?password}
alter role boxoffice_migrate password :'password';
\unset password
\endif
commit;
