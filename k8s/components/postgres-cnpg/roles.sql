-- Made from common/rights.py, as deploy/postgres/roles.sql, but without what only psql understands.
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
